//! The web page that the server brings along.

use reqwest::{Method, StatusCode};

use crate::harness::{TestServer, http};

async fn ask(server: &TestServer, method: Method, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let client = http().http1_only().build().unwrap();
    let mut request = client.request(method, format!("http://{}{path}", server.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn the_page_comes_with_a_policy_that_lets_no_foreign_script_in() {
    let server = TestServer::start(&[]).await;
    let page = ask(&server, Method::GET, "/", &[]).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    let policy = header(&page, "content-security-policy").to_owned();
    for part in
        ["default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = page.text().await.unwrap();
    let script = ask(&server, Method::GET, "/index.js", &[]).await;
    assert!(text.contains("./index.js") && script.status().is_success());
    assert_eq!(header(&script, "content-type"), "text/javascript; charset=utf-8");
    assert_eq!(header(&script, "x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn a_file_is_sent_again_only_when_it_has_changed_and_compressed_to_whoever_takes_that() {
    let server = TestServer::start(&[]).await;
    let plain = ask(&server, Method::GET, "/index.css", &[]).await;
    let tag = header(&plain, "etag").to_owned();
    let bytes = plain.bytes().await.unwrap();
    let packed = ask(&server, Method::GET, "/index.css", &[("accept-encoding", "gzip")]).await;
    assert_eq!((header(&packed, "content-encoding"), header(&packed, "etag") == tag), ("gzip", false));
    assert!(packed.bytes().await.unwrap().len() < bytes.len() / 2);
    let again = ask(&server, Method::GET, "/index.css", &[("if-none-match", &format!("\"x\", W/{tag}"))]).await;
    assert_eq!((again.status(), again.bytes().await.unwrap().len()), (StatusCode::NOT_MODIFIED, 0));
    let head = ask(&server, Method::HEAD, "/index.css", &[]).await;
    assert_eq!(header(&head, "content-length"), bytes.len().to_string());
}

#[tokio::test]
async fn what_is_no_file_of_the_page_is_no_call_either_and_the_page_can_be_switched_off() {
    let server = TestServer::start(&[]).await;
    for path in ["/nothing.js", "/../Cargo.toml", "/agent.v1.AgentService/StreamChat"] {
        assert_eq!(ask(&server, Method::GET, path, &[]).await.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    assert_eq!(ask(&server, Method::POST, "/", &[]).await.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let without = TestServer::start(&[("WEB_PAGE", "off")]).await;
    assert_eq!(ask(&without, Method::GET, "/", &[]).await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

//! The embedded web page.

use reqwest::{Method, StatusCode};

use crate::harness::{TestServer, http};

async fn request(server: &TestServer, method: Method, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let client = http().http1_only().build().unwrap();
    let mut call = client.request(method, format!("http://{}{path}", server.address));
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    call.send().await.unwrap()
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn page_has_a_strict_content_security_policy() {
    let server = TestServer::start_without_database(&[]).await;
    let page = request(&server, Method::GET, "/", &[]).await;
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
    let script = request(&server, Method::GET, "/index.js", &[]).await;
    assert!(text.contains("./index.js") && script.status().is_success());
    assert_eq!(header(&script, "content-type"), "text/javascript; charset=utf-8");
    assert_eq!(header(&script, "x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn page_files_support_etag_and_gzip() {
    let server = TestServer::start_without_database(&[]).await;
    let plain = request(&server, Method::GET, "/index.css", &[]).await;
    let tag = header(&plain, "etag").to_owned();
    let bytes = plain.bytes().await.unwrap();
    let compressed = request(&server, Method::GET, "/index.css", &[("accept-encoding", "gzip")]).await;
    assert_eq!((header(&compressed, "content-encoding"), header(&compressed, "etag") == tag), ("gzip", false));
    assert!(compressed.bytes().await.unwrap().len() < bytes.len() / 2);
    let revalidated =
        request(&server, Method::GET, "/index.css", &[("if-none-match", &format!("\"x\", W/{tag}"))]).await;
    assert_eq!((revalidated.status(), revalidated.bytes().await.unwrap().len()), (StatusCode::NOT_MODIFIED, 0));
    let head = request(&server, Method::HEAD, "/index.css", &[]).await;
    assert_eq!(header(&head, "content-length"), bytes.len().to_string());
}

#[tokio::test]
async fn unknown_paths_are_rejected_and_page_can_be_disabled() {
    let server = TestServer::start_without_database(&[]).await;
    for path in ["/nothing.js", "/../Cargo.toml", "/index.html/"] {
        assert_eq!(request(&server, Method::GET, path, &[]).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let posted = request(&server, Method::POST, "/", &[]).await;
    assert_eq!((posted.status(), header(&posted, "allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
    let disabled = TestServer::start_without_database(&[("WEB_PAGE", "off")]).await;
    assert_eq!(request(&disabled, Method::GET, "/", &[]).await.status(), StatusCode::NOT_FOUND);
}

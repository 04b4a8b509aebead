//! gRPC-Web and CORS: what browsers may do.

use agent_service::proto::agent_v1 as pb;
use prost::Message as _;

use crate::harness::{TestServer, ask, assert_contract, grpc_frame, http};

async fn web_call(server: &TestServer, method: &str, message: &impl prost::Message, origin: &str) -> reqwest::Response {
    http()
        .http1_only()
        .build()
        .unwrap()
        .post(format!("http://{}/agent.v1.AgentService/{method}", server.address))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .header("origin", origin)
        .body(grpc_frame(&message.encode_to_vec()))
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn browser_streams_chat_as_grpc_web_over_http_1_1() {
    let server = TestServer::start(&[]).await;
    let response = web_call(&server, "StreamChat", &ask("hi"), "http://localhost:5173").await;
    assert_eq!(response.version(), reqwest::Version::HTTP_11);
    assert_eq!(response.headers()["access-control-allow-origin"], "http://localhost:5173");
    let body = response.bytes().await.unwrap();
    let mut rest = &body[..];
    let mut frames = Vec::new();
    let mut trailers = String::new();
    while let Some((head, tail)) = rest.split_at_checked(5) {
        let (message, tail) = tail.split_at(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize);
        match head[0] {
            0 => frames.push(pb::ChatResponse::decode(message).unwrap()),
            _ => trailers = String::from_utf8(message.to_vec()).unwrap(),
        }
        rest = tail;
    }
    assert_contract(&frames);
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
}

#[tokio::test]
async fn cors_exposes_grpc_status_headers() {
    let server = TestServer::start_without_database(&[]).await;
    let response = web_call(&server, "StreamChat", &ask(""), "http://localhost:5173").await;
    assert_eq!(response.headers()["grpc-status"], "3");
    let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap().to_owned();
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        assert!(exposed.contains(name) && response.headers().contains_key(name), "{name}: {exposed}");
    }
}

#[tokio::test]
async fn dns_rebinding_page_is_rejected_without_auth() {
    let page = "http://rebound.example:50051";
    let app = ("ALLOWED_ORIGINS", "HTTPS://App.example:443, http://[::2]:8080");
    let gateway = ("AUTH", "gateway");
    let jwt = [("AUTH", "jwt"), ("JWT_SECRET", "a secret that is long enough for the tests")];
    for (variables, origin, status) in [
        (&[][..], page, 403),
        (&[], "null", 403),
        (&[], "http://127.0.0.1.evil.example:50051", 403),
        (&[], "http://127.0.0.1:50051", 200),
        (&[app], page, 403),
        (&[app], "https://app.example", 200),
        (&[app], "http://localhost:50051", 200),
        (&[gateway], page, 403),
        (&[gateway], "null", 403),
        (&[gateway], "http://localhost:5173", 200),
        (&[gateway, app], page, 403),
        (&[gateway, app], "https://app.example", 200),
        (&[gateway, app], "http://[0:0::2]:8080", 200),
        (&[gateway, app], "https://app.example.evil.example", 403),
        (&[gateway, app], "https://app.example:8443", 403),
        (&[gateway, app], "https://user@app.example", 403),
        (&jwt, page, 200),
    ] {
        let server = TestServer::start(variables).await;
        let response = web_call(&server, "StreamChat", &ask("hi"), origin).await;
        assert_eq!(response.status(), status, "{variables:?} {origin}");
        // Over HTTP/2 as gRPC, and of a service that needs no credentials.
        let client = http().http2_prior_knowledge().build().unwrap();
        let check = client.post(format!("http://{}/grpc.health.v1.Health/Check", server.address));
        let check = check.header("content-type", "application/grpc").header("te", "trailers").header("origin", origin);
        assert_eq!(check.body(grpc_frame(b"")).send().await.unwrap().status(), status, "{variables:?} {origin}");
    }
}

#[tokio::test]
async fn native_call_without_origin_is_served_behind_a_gateway() {
    let server = TestServer::start(&[("AUTH", "gateway")]).await;
    assert_contract(&server.chat(ask("hi")).await.unwrap());
}

#[tokio::test]
async fn browser_that_hides_its_origin_must_call_a_known_host() {
    let server = TestServer::start_without_database(&[("AUTH", "gateway")]).await;
    for (host, status) in [("localhost:50051", 200), ("rebound.example:50051", 403)] {
        let client = http().http1_only().build().unwrap();
        let call = client.post(format!("http://{}/agent.v1.AgentService/RetrieveMemory", server.address));
        let call = call.header("content-type", "application/grpc-web+proto").header("host", host);
        let call = call.header("sec-fetch-site", "same-origin").body(grpc_frame(b""));
        assert_eq!(call.send().await.unwrap().status(), status, "{host}");
    }
}

#[tokio::test]
async fn cors_preflight_allows_only_configured_origins() {
    let preflight = async |server: &TestServer, origin: &str| {
        let url = format!("http://{}/agent.v1.AgentService/StreamChat", server.address);
        let request = http().build().unwrap().request(reqwest::Method::OPTIONS, url);
        let request = request
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type,x-grpc-web,user-id,authorization,x-tenant");
        request.send().await.unwrap()
    };
    let server = TestServer::start_without_database(&[]).await;
    let response = preflight(&server, "http://localhost:5173").await;
    assert!(response.status().is_success());
    let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap().to_owned();
    for name in ["authorization", "user-id", "x-grpc-web", "content-type"] {
        assert!(allowed.split(',').any(|header| header == name), "{name}: {allowed}");
    }
    assert!(!preflight(&server, "https://evil.example").await.headers().contains_key("access-control-allow-origin"));

    for auth in ["none", "gateway"] {
        let variables = [("AUTH", auth), ("ALLOWED_ORIGINS", "https://App.example.com:443")];
        let server = TestServer::start_without_database(&variables).await;
        let response = preflight(&server, "https://app.example.com").await;
        assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example.com");
        for origin in
            ["http://localhost:5173", "https://app.example.com.evil.example", "https://app.example.com:444", "null"]
        {
            let response = preflight(&server, origin).await;
            assert!(!response.headers().contains_key("access-control-allow-origin"), "{auth} {origin}: {response:?}");
        }
    }
}

#[tokio::test]
async fn simple_cors_request_is_rejected() {
    let server = TestServer::start_without_database(&[]).await;
    for client in [http().http1_only(), http().http2_prior_knowledge()] {
        let call = client.build().unwrap().post(format!("http://{}/agent.v1.AgentService/StreamChat", server.address));
        let call = call.header("origin", "https://evil.example").header("content-type", "text/plain");
        let response = call.body(grpc_frame(&ask("hi").encode_to_vec())).send().await.unwrap();
        assert_eq!(response.status(), 415);
        assert!(response.bytes().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn grpc_web_content_type_is_case_insensitive() {
    let server = TestServer::start(&[]).await;
    for client in [http().http1_only(), http().http2_prior_knowledge()] {
        let client = client.build().unwrap();
        let call = |content_type: &'static str, body: Vec<u8>| {
            let call = client.post(format!("http://{}/agent.v1.AgentService/StreamChat", server.address));
            call.header("content-type", content_type).body(body).send()
        };
        for content_type in ["Application/gRPC-Web+Proto", "application/grpc-web+proto; charset=utf-8"] {
            let response = call(content_type, grpc_frame(&ask("hi").encode_to_vec())).await.unwrap();
            assert_eq!(response.headers()["content-type"], "application/grpc-web+proto", "{content_type}");
            let body = response.bytes().await.unwrap();
            assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"), "{body:?}");
        }
        for garbage in ["!not base64!", "AAA"] {
            let response = call("application/grpc-web-text", garbage.into()).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], "3", "{garbage}");
        }
    }
}

#[tokio::test]
async fn rejection_reaches_client_that_is_still_sending() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = TestServer::start_without_database(&[]).await;
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let body = vec![0; 4 * 1024 * 1024];
    let head = format!(
        "POST /nobody/Nothing HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&body).await.expect("the server closed the connection");
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn cors_allows_tracing_headers_and_configured_ones() {
    let allowed = async |variables: &[(&str, &str)], origin: &str| {
        let server = TestServer::start_without_database(variables).await;
        let url = format!("http://{}/agent.v1.AgentService/StreamChat", server.address);
        let request = http().build().unwrap().request(reqwest::Method::OPTIONS, url).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let response = request.header("access-control-request-headers", "x-tenant,x-other").send().await.unwrap();
        assert_eq!(response.headers()["access-control-allow-origin"], origin);
        let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap().to_ascii_lowercase();
        allowed.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>()
    };
    let known = [
        "baggage",
        "grpc-accept-encoding",
        "grpc-encoding",
        "grpc-timeout",
        "sentry-trace",
        "traceparent",
        "tracestate",
        "x-detach-seconds",
        "x-last-response-id",
        "x-recall",
        "x-request-id",
        "x-store",
        "x-timezone",
        "x-trace-id",
    ];
    let default = allowed(&[], "http://app.localhost:3000").await;
    assert!(known.iter().all(|name| default.iter().any(|allowed| allowed == name)), "{default:?}");
    assert!(!default.contains(&"x-tenant".to_owned()), "{default:?}");
    let further = allowed(&[("CORS_ALLOWED_HEADERS", "X-Tenant, x-app")], "http://localhost").await;
    assert!(
        ["x-tenant", "x-app", "authorization"].iter().all(|name| further.contains(&(*name).to_owned())),
        "{further:?}"
    );
    let any = allowed(&[("CORS_ALLOWED_HEADERS", "*")], "http://127.0.0.1:8080").await;
    assert_eq!(any, ["x-tenant", "x-other"]);
}

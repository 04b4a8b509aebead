//! The server around the services: health, reflection, gRPC-Web, CORS, deadlines, the end.

use agent_service::{
    proto::agent_v1::{self as pb, chat_response::Content},
    transport::server::Listener,
};
use futures_util::future::join_all;
use prost::Message as _;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::harness::{
    PATIENCE, TestServer, ask, check_contract, config, error_of, framed, http, kind, outline, raw_call,
};

const SERVICES: [&str; 3] = ["", "agent.v1.AgentService", "agent.v1.MemoryService"];

#[tokio::test]
async fn the_health_of_each_service_follows_the_database() {
    let server = TestServer::start(&[]).await;
    let mut client = HealthClient::new(server.channel.clone());
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.into() };
        let mut watch = client.watch(request.clone()).await.unwrap().into_inner();
        for ready in [true, false, true] {
            server.ready.send_replace(ready);
            let expected = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            // The first may still be the state before.
            while watch.message().await.unwrap().unwrap().status() != expected {}
            assert_eq!(client.check(request.clone()).await.unwrap().into_inner().status(), expected);
        }
    }
    let unknown = client.check(HealthCheckRequest { service: "nobody".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn where_callers_bring_tokens_the_health_and_reflection_are_open_or_closed_by_setting() {
    use tonic_reflection::pb::v1;
    let tokens = [("AUTH", "jwt"), ("JWT_SECRET", "a secret that the gateway shares")];
    for (health, reflection) in [("on", "off"), ("off", "on")] {
        let settings = [("GRPC_HEALTH", health), ("GRPC_REFLECTION", reflection)];
        let server = TestServer::start(&[tokens, settings].concat()).await;
        let checked = HealthClient::new(server.channel.clone()).check(HealthCheckRequest::default()).await;
        assert_eq!(checked.map(drop).map_err(|status| status.code()), expected(health));
        let request = v1::ServerReflectionRequest {
            message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
        let listed = client.server_reflection_info(tokio_stream::once(request)).await;
        if let Ok(listed) = listed {
            assert_eq!(reflection, "on");
            let listed = format!("{:?}", listed.into_inner().message().await.unwrap().unwrap());
            assert!(!listed.contains("grpc.health"), "what is closed is not listed: {listed}");
        } else {
            assert_eq!(listed.map(drop).map_err(|status| status.code()), expected(reflection));
        }
        let refused = server.agent().stream_chat(ask("hi")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "the calls themselves are guarded");
    }
    fn expected(switch: &str) -> Result<(), Code> {
        if switch == "on" { Ok(()) } else { Err(Code::Unimplemented) }
    }
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions_and_can_be_switched_off() {
    use tonic_reflection::pb::{v1, v1alpha};
    let services = ["agent.v1.AgentService", "agent.v1.MemoryService", "grpc.health.v1.Health"];
    for (variables, open) in [(vec![], true), (vec![("GRPC_REFLECTION", "off")], false)] {
        let server = TestServer::start(&variables).await;
        let request = v1::ServerReflectionRequest {
            message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
        let answer = client.server_reflection_info(tokio_stream::once(request)).await;
        assert_eq!(answer.is_ok(), open);
        if let Ok(answer) = answer {
            let answer = format!("{:?}", answer.into_inner().message().await.unwrap().unwrap());
            assert!(services.iter().all(|service| answer.contains(service)), "{answer}");
        }
        let request = v1alpha::ServerReflectionRequest {
            message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
        let answer = client.server_reflection_info(tokio_stream::once(request)).await;
        assert_eq!(answer.is_ok(), open);
    }
}

/// A unary or streaming call as a browser makes it, over HTTP/1.1.
async fn web_call(server: &TestServer, method: &str, message: &impl prost::Message, origin: &str) -> reqwest::Response {
    http()
        .http1_only()
        .build()
        .unwrap()
        .post(format!("http://{}/agent.v1.AgentService/{method}", server.address))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .header("origin", origin)
        .body(framed(&message.encode_to_vec()))
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_browser_streams_a_chat_over_http_1_1_as_grpc_web() {
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
    check_contract(&frames);
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
}

#[tokio::test]
async fn a_page_may_read_why_it_was_refused() {
    let server = TestServer::start(&[]).await;
    let response = web_call(&server, "StreamChat", &ask(""), "http://localhost:5173").await;
    assert_eq!(response.headers()["grpc-status"], "3");
    let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap().to_owned();
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        assert!(exposed.contains(name) && response.headers().contains_key(name), "{name}: {exposed}");
    }
}

#[tokio::test]
async fn a_page_whose_name_came_to_mean_this_machine_is_refused_unless_callers_prove_who_they_are() {
    let page = "http://rebound.example:50051";
    let secret = ("JWT_SECRET", "a secret that is long enough for the tests");
    for (variables, origin, status) in [
        (vec![], page, 403),
        (vec![], "null", 403),
        (vec![], "http://127.0.0.1:50051", 200),
        (vec![("ALLOWED_ORIGINS", "https://app.example")], page, 403),
        (vec![("ALLOWED_ORIGINS", "https://app.example")], "https://app.example", 200),
        (vec![("ALLOWED_ORIGINS", "https://app.example")], "http://localhost:50051", 200),
        (vec![("ALLOWED_ORIGINS", "*")], page, 200),
        (vec![("AUTH", "jwt"), secret], page, 200),
    ] {
        let server = TestServer::start(&variables).await;
        let response = web_call(&server, "StreamChat", &ask("hi"), origin).await;
        assert_eq!(response.status(), status, "{variables:?} {origin}");
    }
}

#[tokio::test]
async fn a_preflight_allows_the_headers_of_clients_to_allowed_origins_only() {
    let preflight = async |server: &TestServer, origin: &str| {
        let url = format!("http://{}/agent.v1.AgentService/StreamChat", server.address);
        let request = http().build().unwrap().request(reqwest::Method::OPTIONS, url);
        let request = request
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type,x-grpc-web,user-id,authorization");
        request.send().await.unwrap()
    };
    let server = TestServer::start(&[]).await;
    let response = preflight(&server, "http://localhost:5173").await;
    assert!(response.status().is_success());
    let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap().to_owned();
    for name in ["authorization", "user-id", "x-grpc-web", "content-type"] {
        assert!(allowed.split(',').any(|header| header == name), "{name}: {allowed}");
    }
    assert!(!preflight(&server, "https://evil.example").await.headers().contains_key("access-control-allow-origin"));

    let server = TestServer::start(&[("ALLOWED_ORIGINS", "https://app.example.com")]).await;
    let response = preflight(&server, "https://app.example.com").await;
    assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example.com");
    assert!(!preflight(&server, "http://localhost:5173").await.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_page_can_not_call_without_a_preflight_by_naming_a_content_type_of_forms() {
    let server = TestServer::start(&[]).await;
    for client in [http().http1_only(), http().http2_prior_knowledge()] {
        let call = client.build().unwrap().post(format!("http://{}/agent.v1.AgentService/StreamChat", server.address));
        let call = call.header("origin", "https://evil.example").header("content-type", "text/plain");
        let response = call.body(framed(&ask("hi").encode_to_vec())).send().await.unwrap();
        assert_eq!(response.status(), 415);
        assert!(response.bytes().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_content_type_in_another_case_or_with_parameters_is_the_same_and_a_text_that_is_no_base64_is_a_wrong_argument()
 {
    let server = TestServer::start(&[]).await;
    for client in [http().http1_only(), http().http2_prior_knowledge()] {
        let client = client.build().unwrap();
        let call = |content_type: &'static str, body: Vec<u8>| {
            let call = client.post(format!("http://{}/agent.v1.AgentService/StreamChat", server.address));
            call.header("content-type", content_type).body(body).send()
        };
        for content_type in ["Application/gRPC-Web+Proto", "application/grpc-web+proto; charset=utf-8"] {
            let response = call(content_type, framed(&ask("hi").encode_to_vec())).await.unwrap();
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
async fn a_refusal_over_http_1_1_reaches_a_client_that_is_still_sending() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = TestServer::start(&[]).await;
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
async fn a_deadline_that_passes_is_told_as_such() {
    // A database that accepts connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let server = TestServer::start_on(&url, &[]).await;
    let query = pb::MemoryQuery { user_id: "ann".into(), query_text: "x".into(), ..Default::default() };
    // Without a client that has a timer of its own.
    let response = raw_call(&server, "RetrieveMemory", &query.encode_to_vec(), "50m").await;
    assert_eq!(response.headers()["grpc-status"], "4", "{:?}", response.headers());
}

#[tokio::test]
async fn a_memory_that_can_not_be_reached_is_unavailable_and_asks_to_try_again() {
    use tonic_types::StatusExt as _;
    let nobody = "127.0.0.1:1";
    let server = TestServer::start_on(&format!("postgres://nobody@{nobody}/none"), &[]).await;
    let query = pb::MemoryQuery { user_id: "ann".into(), query_text: "x".into(), ..Default::default() };
    let status = server.agent().retrieve_memory(query).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
}

#[tokio::test]
async fn many_clients_that_come_at_once_are_not_sent_away_for_a_second() {
    // Nothing is accepted, as by a server that is busy for a moment.
    let listener = Listener::bind(&config(&[("GRPC_PORT", "0")]).server).await.unwrap();
    let clients = join_all((0..500).map(|_| tokio::net::TcpStream::connect(listener.address())));
    let clients = tokio::time::timeout(PATIENCE, clients).await.expect("a client is sent away");
    assert!(clients.iter().all(Result::is_ok));
}

#[tokio::test]
async fn many_streams_share_one_connection_and_many_resets_do_not_break_it() {
    // It is about the transport alone.
    let server = TestServer::start(&[("DEMO_CHUNK_DELAY_MS", "3600000"), ("CONVERSATIONS", "off")]).await;
    let open = join_all((0..1000).map(async |user| {
        let user_id = format!("user {user}");
        let request = pb::ChatRequest { user_id, use_document_context: Some(false), ..ask("hi") };
        let mut stream = server.agent().stream_chat(request).await.unwrap().into_inner();
        while kind(&stream.message().await.unwrap().unwrap()) != "delta" {}
        stream
    }));
    let streams = tokio::time::timeout(PATIENCE, open).await.expect("streams wait for each other");
    assert_eq!(streams.len(), 1000);
    drop(streams);
    let request = pb::ChatRequest { use_document_context: Some(false), ..ask("hi") };
    let mut stream = server.agent().stream_chat(request).await.unwrap().into_inner();
    assert_eq!(kind(&stream.message().await.unwrap().unwrap()), "THINKING", "on the same connection");
}

#[tokio::test]
async fn streams_finish_within_the_grace_of_a_stop() {
    let mut server = TestServer::start(&[("DEMO_CHUNK_DELAY_MS", "2"), ("SHUTDOWN_GRACE_SECONDS", "60")]).await;
    let mut stream = server.agent().stream_chat(ask("帮我制定高数复习计划")).await.unwrap().into_inner();
    let mut frames = Vec::new();
    while let Some(frame) = stream.message().await.unwrap() {
        if frames.len() == 5 {
            server.stop.cancel();
        }
        frames.push(frame);
    }
    check_contract(&frames);
    assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Stop);
    tokio::time::timeout(PATIENCE, server.serving.take().unwrap()).await.expect("the server hangs").unwrap();
}

#[tokio::test]
async fn streams_that_take_longer_end_with_an_error_that_asks_to_try_again() {
    let variables = [("DEMO_CHUNK_DELAY_MS", "3600000"), ("SHUTDOWN_GRACE_SECONDS", "0.05")];
    let mut server = TestServer::start(&variables).await;
    let mut stream = server.agent().stream_chat(ask("hi")).await.unwrap().into_inner();
    let mut frames = Vec::new();
    while let Some(frame) = stream.message().await.unwrap() {
        if kind(&frame) == "delta" {
            server.stop.cancel();
        }
        frames.push(frame);
    }
    check_contract(&frames);
    assert_eq!(outline(&frames), ["THINKING", "SEARCHING", "GENERATING", "delta", "usage", "error"]);
    let error = error_of(&frames);
    assert_eq!((error.code.as_str(), error.retryable), ("SERVER_SHUTTING_DOWN", true));
    tokio::time::timeout(PATIENCE, server.serving.take().unwrap()).await.expect("the server hangs").unwrap();
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err(), "nobody is let in any more");
}

#[tokio::test]
async fn a_watcher_of_the_health_does_not_hold_up_the_end() {
    let mut server = TestServer::start(&[("SHUTDOWN_GRACE_SECONDS", "3600")]).await;
    let mut client = HealthClient::new(server.channel.clone());
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    server.stop.cancel();
    tokio::time::timeout(PATIENCE, server.serving.take().unwrap()).await.expect("the server waits").unwrap();
}

#[tokio::test]
async fn a_reader_that_is_slow_gets_everything() {
    let server = TestServer::start(&[]).await;
    let mut stream = server.agent().stream_chat(ask("帮我制定高数复习计划")).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(frame) = stream.message().await.unwrap() {
        tokio::task::yield_now().await;
        match frame.content {
            Some(Content::Delta(delta)) => text.push_str(&delta),
            Some(Content::FullText(whole)) => assert_eq!(whole, text),
            _ => {}
        }
    }
    assert!(!text.is_empty());
}

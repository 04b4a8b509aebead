//! The server around the services: health, reflection, deadlines, many connections and streams.

use agent_service::{
    proto::agent_v1::{self as pb, chat_response::Content},
    transport::server::Listener,
};
use futures_util::future::join_all;
use prost::Message as _;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::harness::{
    TEST_TIMEOUT, TestServer, UNREACHABLE_DATABASE, ask, ask_without_retrieval, config, frame_kind, memory_query,
    open_stream, raw_call, without_retrieval,
};

const SERVICES: [&str; 3] = ["", "agent.v1.AgentService", "agent.v1.MemoryService"];

#[tokio::test]
async fn health_of_each_service_follows_readiness() {
    let server = TestServer::start(&[]).await;
    let mut client = HealthClient::new(server.channel.clone());
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.into() };
        let mut watch = client.watch(request.clone()).await.unwrap().into_inner();
        for ready in [true, false, true] {
            server.ready.send_replace(ready);
            let expected = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            // The first report may be the previous state.
            while watch.message().await.unwrap().unwrap().status() != expected {}
            assert_eq!(client.check(request.clone()).await.unwrap().into_inner().status(), expected);
        }
    }
    let unknown = client.check(HealthCheckRequest { service: "unknown".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn watch_of_unknown_service_reports_it_and_stays_open() {
    let server = TestServer::start_without_database(&[]).await;
    let mut client = HealthClient::new(server.channel.clone());
    for service in ["unknown", "agent.v1.AgentServic", "grpc.health.v1.Health"] {
        let request = HealthCheckRequest { service: service.into() };
        let mut watch = client.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown, "{service}");
        // A change of the known services is no news for it.
        let mut known = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        for is_ready in [true, false] {
            server.ready.send_replace(is_ready);
            let expected = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            while known.message().await.unwrap().unwrap().status() != expected {}
        }
        assert!(futures_util::FutureExt::now_or_never(watch.message()).is_none(), "{service}");
    }
}

#[tokio::test]
async fn health_and_reflection_need_no_token_when_enabled() {
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
            assert!(!listed.contains("grpc.health"), "a disabled service is listed: {listed}");
        } else {
            assert_eq!(listed.map(drop).map_err(|status| status.code()), expected(reflection));
        }
        let rejected = server.agent().stream_chat(ask("hi")).await.unwrap_err();
        assert_eq!(rejected.code(), Code::Unauthenticated, "calls require a token");
    }
    fn expected(switch: &str) -> Result<(), Code> {
        if switch == "on" { Ok(()) } else { Err(Code::Unimplemented) }
    }
}

#[tokio::test]
async fn reflection_lists_services_unless_disabled() {
    use tonic_reflection::pb::{v1, v1alpha};
    let services = ["agent.v1.AgentService", "agent.v1.MemoryService", "grpc.health.v1.Health"];
    for (variables, open) in [(vec![], true), (vec![("GRPC_REFLECTION", "off")], false)] {
        let server = TestServer::start_without_database(&variables).await;
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

#[tokio::test]
async fn passed_deadline_is_deadline_exceeded() {
    // Accepts connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let server = TestServer::start_on(&url, &[]).await;
    let query = memory_query("ann", "x");
    // tonic's client would enforce the deadline itself.
    let response = raw_call(&server, "RetrieveMemory", &query.encode_to_vec(), "50m").await;
    assert_eq!(response.headers()["grpc-status"], "4", "{:?}", response.headers());
}

#[tokio::test]
async fn unreachable_memory_is_unavailable_with_retry_info() {
    use tonic_types::StatusExt as _;
    let server = TestServer::start_on(UNREACHABLE_DATABASE, &[]).await;
    let query = memory_query("ann", "x");
    let status = server.agent().retrieve_memory(query).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
}

#[tokio::test]
async fn connection_burst_fits_the_accept_backlog() {
    // Nothing is accepted, as if the server were busy.
    let listener = Listener::bind(&config(&[("GRPC_PORT", "0")]).server).await.unwrap();
    let clients = join_all((0..500).map(|_| tokio::net::TcpStream::connect(listener.address())));
    let clients = tokio::time::timeout(TEST_TIMEOUT, clients).await.expect("a connection was refused");
    assert!(clients.iter().all(Result::is_ok));
}

#[tokio::test]
async fn connection_survives_a_thousand_stream_resets() {
    let server = TestServer::start(&[("DEMO_CHUNK_DELAY_MS", "3600000"), ("CONVERSATIONS", "off")]).await;
    let open = join_all((0..1000).map(async |user| {
        let user_id = format!("user {user}");
        let request = without_retrieval(pb::ChatRequest { user_id, ..ask("hi") });
        let mut stream = open_stream(&server, request).await;
        while frame_kind(&stream.message().await.unwrap().unwrap()) != "delta" {}
        stream
    }));
    let streams = tokio::time::timeout(TEST_TIMEOUT, open).await.expect("the streams block each other");
    assert_eq!(streams.len(), 1000);
    drop(streams);
    let mut stream = open_stream(&server, ask_without_retrieval("hi")).await;
    assert_eq!(frame_kind(&stream.message().await.unwrap().unwrap()), "THINKING", "the connection is broken");
}

#[tokio::test]
async fn slow_reader_receives_every_delta() {
    let server = TestServer::start(&[]).await;
    let mut stream = open_stream(&server, ask("帮我制定高数复习计划")).await;
    let mut text = String::new();
    while let Some(frame) = stream.message().await.unwrap() {
        tokio::task::yield_now().await;
        match frame.content {
            Some(Content::Delta(delta)) => text.push_str(&delta),
            Some(Content::FullText(full_text)) => assert_eq!(full_text, text),
            _ => {}
        }
    }
    assert!(!text.is_empty());
}

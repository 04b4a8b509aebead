//! Faults of an embedding provider: timeouts, retries, circuit breaker, batches that are halved.

use agent_service::proto::agent_v1 as pb;
use serde_json::json;
use tonic::Code;

use crate::{
    fake_provider::{FakeProvider, Step, head, http_response},
    harness::{TestServer, memory_input, weighted_query},
};

fn vectors_response(count: usize) -> Vec<Step> {
    let data: Vec<_> = (0..count).map(|index| json!({"index": index, "embedding": [1.0, index as f64]})).collect();
    let mut bytes = head(200, "application/json");
    bytes.extend(json!({ "data": data }).to_string().into_bytes());
    vec![Step::Send(bytes)]
}

async fn start_with_retries(more: &[(&str, &str)]) -> (FakeProvider, TestServer) {
    let provider = FakeProvider::start().await;
    let mut variables = provider.embedding_variables();
    variables.extend([("LLM_MAX_ATTEMPTS", "3"), ("LLM_BREAKER_FAILURES", "0")]);
    variables.extend(more.iter().copied());
    let server = TestServer::start(&variables).await;
    (provider, server)
}

async fn add(server: &TestServer, texts: usize) -> Result<i32, Code> {
    let memories = (0..texts).map(|n| memory_input("", &format!("memory {n}"))).collect();
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
    let added = server.memory().add_memories(request).await.map_err(|status| status.code())?;
    Ok(added.into_inner().added)
}

fn take_batch_sizes(provider: &mut FakeProvider) -> Vec<usize> {
    let requests = provider.take_requests();
    requests.iter().map(|request| request.body["input"].as_array().unwrap().len()).collect()
}

#[tokio::test]
async fn rejected_batch_is_halved_and_size_is_remembered() {
    let (mut provider, server) = start_with_retries(&[]).await;
    provider.script(http_response(400, "", r#"{"error":{"message":"batch size is invalid"}}"#)).await;
    provider.script(http_response(413, "", "")).await;
    for count in [4, 3, 3, 3] {
        provider.script(vectors_response(count)).await;
    }
    assert_eq!(add(&server, 13).await, Ok(13));
    assert_eq!(take_batch_sizes(&mut provider), [13, 7, 4, 3, 3, 3]);
}

#[tokio::test]
async fn rejected_text_of_one_user_leaves_the_batches_of_others() {
    let (mut provider, server) = start_with_retries(&[]).await;
    // The last of eight texts is rejected, wherever it is sent.
    for accepted in [None, Some(4), None, Some(2), None, Some(1), None] {
        provider.script(accepted.map_or_else(|| http_response(400, "", "{}"), vectors_response)).await;
    }
    assert_eq!(add(&server, 8).await, Err(Code::Internal));
    assert_eq!(take_batch_sizes(&mut provider), [8, 4, 4, 2, 2, 1, 1]);
    provider.script(vectors_response(8)).await;
    let memories = (0..8).map(|n| memory_input("", &format!("another memory {n}"))).collect();
    let request = pb::AddMemoriesRequest { user_id: "bob".into(), memories };
    server.memory().add_memories(request).await.unwrap();
    assert_eq!(take_batch_sizes(&mut provider), [8], "the provider would take them at once");
}

#[tokio::test]
async fn rejected_single_text_fails_after_few_requests() {
    let (mut provider, server) = start_with_retries(&[]).await;
    provider.script_all(http_response(400, "", "{}")).await;
    assert_eq!(add(&server, 8).await, Err(Code::Internal));
    assert_eq!(take_batch_sizes(&mut provider), [8, 4, 2, 1]);
}

#[tokio::test]
async fn only_transient_embedding_errors_are_retried() {
    let (mut provider, server) = start_with_retries(&[]).await;
    for fault in [http_response(503, "", ""), http_response(429, "retry-after: 0.1\r\n", ""), vec![]] {
        provider.script(fault).await;
        provider.script(vectors_response(1)).await;
        let text = format!("after {} connections", provider.connections());
        server.remember("ann", &[&text]).await;
        assert_eq!(provider.take_requests().len(), 2);
    }
    provider.script_all(http_response(503, "", "")).await;
    assert_eq!(add(&server, 1).await, Err(Code::Unavailable));
    assert_eq!(provider.take_requests().len(), 3);
    provider.script_all(http_response(401, "", "{}")).await;
    assert_eq!(add(&server, 1).await, Err(Code::Internal));
    assert_eq!(provider.take_requests().len(), 1);
}

#[tokio::test]
async fn vector_of_wrong_dimension_stores_nothing() {
    let (provider, server) = start_with_retries(&[]).await;
    provider.respond(200, r#"{"data":[{"embedding":[1,0,0]}]}"#).await;
    assert_eq!(add(&server, 1).await, Err(Code::Internal));
    assert!(server.list_memories("ann").await.is_empty());
}

#[tokio::test]
async fn search_degrades_to_lexical_when_embedder_fails() {
    let (mut provider, server) = start_with_retries(&[("LLM_MAX_ATTEMPTS", "1"), ("LLM_BREAKER_FAILURES", "1")]).await;
    provider.script(vectors_response(1)).await;
    server.remember("ann", &["kat zat"]).await;
    provider.take_requests();
    provider.script_all(vec![Step::AwaitDisconnect]).await;
    let assert_lexical = async |text: &str| {
        let response = server.agent().retrieve_memory(weighted_query(text, 0.5)).await.unwrap();
        assert_eq!(response.metadata().get("x-retrieval").unwrap(), "keywords-only");
        assert_eq!(response.get_ref().items.len(), 1);
    };
    assert_lexical("kat").await;
    assert_eq!(provider.take_requests().len(), 1, "the silent embedder was not called");
    provider.script_all(http_response(503, "", "")).await;
    assert_lexical("zat").await;
    provider.take_requests();
    assert_lexical("kat zat").await;
    assert!(provider.take_requests().is_empty(), "the circuit breaker is open, yet the embedder was called");
    assert_eq!(server.agent().retrieve_memory(weighted_query("kat", 1.0)).await.unwrap_err().code(), Code::Unavailable);
}

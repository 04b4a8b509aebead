//! Embeddings of a provider take the same care as answers: limits, retries, a breaker, batches that halve.

use agent_service::proto::agent_v1 as pb;
use serde_json::json;
use tonic::Code;

use crate::{
    fake_provider::{FakeProvider, Step, head, refusal},
    harness::TestServer,
};

/// An answer with so many vectors.
fn vectors(count: usize) -> Vec<Step> {
    let data: Vec<_> = (0..count).map(|index| json!({"index": index, "embedding": [1.0, index as f64]})).collect();
    let mut bytes = head(200, "application/json");
    bytes.extend(json!({ "data": data }).to_string().into_bytes());
    vec![Step::Send(bytes)]
}

async fn server(provider: &FakeProvider, more: &[(&str, &str)]) -> TestServer {
    let mut variables = provider.embedding_variables();
    variables.extend([("LLM_MAX_ATTEMPTS", "3"), ("LLM_BREAKER_FAILURES", "0")]);
    variables.extend(more.iter().copied());
    TestServer::start(&variables).await
}

async fn add(server: &TestServer, texts: usize) -> Result<i32, Code> {
    let memories =
        (0..texts).map(|n| pb::MemoryInput { content: format!("memory {n}"), ..Default::default() }).collect();
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
    let added = server.memory().add_memories(request).await.map_err(|status| status.code())?;
    Ok(added.into_inner().added)
}

fn query(text: &str, alpha: f32) -> pb::MemoryQuery {
    let (user_id, query_text) = ("ann".into(), text.into());
    pb::MemoryQuery { user_id, query_text, hybrid_alpha: Some(alpha), ..Default::default() }
}

fn sizes(provider: &mut FakeProvider) -> Vec<usize> {
    let requests = provider.received();
    requests.iter().map(|request| request.body["input"].as_array().unwrap().len()).collect()
}

#[tokio::test]
async fn a_batch_that_is_refused_for_its_size_is_halved_and_larger_ones_are_not_tried_again() {
    let mut provider = FakeProvider::start().await;
    let server = server(&provider, &[]).await;
    provider.script(refusal(400, "", r#"{"error":{"message":"batch size is invalid"}}"#)).await;
    provider.script(refusal(413, "", "")).await;
    for count in [4, 3, 3, 3] {
        provider.script(vectors(count)).await;
    }
    assert_eq!(add(&server, 13).await, Ok(13));
    assert_eq!(sizes(&mut provider), [13, 7, 4, 3, 3, 3]);
}

#[tokio::test]
async fn a_text_that_is_refused_by_itself_is_an_error_after_a_few_requests() {
    let mut provider = FakeProvider::start().await;
    let server = server(&provider, &[]).await;
    provider.always(refusal(400, "", "{}")).await;
    assert_eq!(add(&server, 8).await, Err(Code::Internal));
    assert_eq!(sizes(&mut provider), [8, 4, 2, 1]);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let mut provider = FakeProvider::start().await;
    let server = server(&provider, &[]).await;
    for fault in [refusal(503, "", ""), refusal(429, "retry-after: 0.1\r\n", ""), vec![]] {
        provider.script(fault).await;
        provider.script(vectors(1)).await;
        let text = format!("after {} connections", provider.connections());
        server.memory().add_memories(request(&text)).await.unwrap();
        assert_eq!(provider.received().len(), 2);
    }
    provider.always(refusal(503, "", "")).await;
    assert_eq!(add(&server, 1).await, Err(Code::Unavailable));
    assert_eq!(provider.received().len(), 3);
    provider.always(refusal(401, "", "{}")).await;
    assert_eq!(add(&server, 1).await, Err(Code::Internal));
    assert_eq!(provider.received().len(), 1);
}

fn request(text: &str) -> pb::AddMemoriesRequest {
    let memory = pb::MemoryInput { content: text.into(), ..Default::default() };
    pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![memory] }
}

#[tokio::test]
async fn a_vector_of_another_length_is_refused_and_nothing_is_stored() {
    let provider = FakeProvider::start().await;
    let server = server(&provider, &[]).await;
    provider.refuse(200, r#"{"data":[{"embedding":[1,0,0]}]}"#).await;
    assert_eq!(add(&server, 1).await, Err(Code::Internal));
    let list = pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() };
    assert!(server.memory().list_memories(list).await.unwrap().into_inner().memories.is_empty());
}

#[tokio::test]
async fn an_embedder_that_is_dead_or_silent_costs_a_search_its_meaning_but_not_its_words() {
    let mut provider = FakeProvider::start().await;
    let server = server(&provider, &[("LLM_MAX_ATTEMPTS", "1"), ("LLM_BREAKER_FAILURES", "1")]).await;
    provider.script(vectors(1)).await;
    server.memory().add_memories(request("kat zat")).await.unwrap();
    provider.received();
    provider.always(vec![Step::AwaitGone]).await;
    let by_words = async |text: &str| {
        let response = server.agent().retrieve_memory(query(text, 0.5)).await.unwrap();
        assert_eq!(response.metadata().get("x-retrieval").unwrap(), "keywords-only");
        assert_eq!(response.get_ref().items.len(), 1);
    };
    by_words("kat").await;
    assert_eq!(provider.received().len(), 1, "it was asked, and waited for in vain");
    provider.always(refusal(503, "", "")).await;
    by_words("zat").await;
    provider.received();
    by_words("kat zat").await;
    assert!(provider.received().is_empty(), "a dead embedder is not asked");
    assert_eq!(server.agent().retrieve_memory(query("kat", 1.0)).await.unwrap_err().code(), Code::Unavailable);
}

//! Learning across conversations.

use agent_service::proto::agent_v1::{
    self as pb, chat_response::Content, conversation_service_client::ConversationServiceClient,
};

use crate::{
    process::{Sandbox, eventually},
    server::{Server, USER, question},
};

async fn titles(server: &Server) -> Vec<String> {
    let mut client = ConversationServiceClient::new(server.channel().await);
    let request = pb::ListSessionsRequest { user_id: USER.to_owned(), ..Default::default() };
    let listed = client.list_sessions(request).await.unwrap().into_inner();
    listed.sessions.into_iter().map(|session| session.title).collect()
}

#[tokio::test]
async fn facts_are_recalled_in_next_conversation_after_restart() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    server.chat(question("我对花生过敏。")).await.rest().await.unwrap();
    eventually("the fact is learned", async || server.remembered().await.contains(&"用户对花生过敏。".to_owned()))
        .await;
    eventually("the session has a title", async || titles(&server).await == ["我对花生过敏"]).await;
    server.process.stop().await;
    let server = sandbox.start_serving(&[]).await;
    let frames = server.chat(question("我对什么过敏？")).await.rest().await.unwrap();
    let grounded = frames.iter().find_map(|frame| match &frame.content {
        Some(Content::Citations(block)) => Some(block.citations.iter().map(|citation| citation.content.as_str())),
        _ => None,
    });
    assert!(grounded.unwrap().any(|content| content == "用户对花生过敏。"));
}

#[tokio::test]
async fn learning_off_extracts_no_facts() {
    let (_sandbox, server) = Sandbox::with_server(&[("LEARNING", "off")]).await;
    server.chat(question("I'm allergic to peanuts. What can I eat?")).await.rest().await.unwrap();
    eventually("the session has a title", async || titles(&server).await == ["I'm allergic to peanuts"]).await;
    assert_eq!(server.remembered().await, [""; 0]);
}

/// Only with the emulator of `infra/dynamodb.sh`.
#[tokio::test]
async fn facts_of_conversations_in_dynamodb_are_learned() {
    if std::env::var_os("TEST_DYNAMODB_URL").is_none() {
        return;
    }
    let names = ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_DYNAMODB"];
    let values = names.map(|name| std::env::var(name).unwrap());
    let mut variables: Vec<_> = names.into_iter().zip(values.iter().map(String::as_str)).collect();
    variables.extend([("CONVERSATIONS", "dynamodb://agent-conversations"), ("ADMISSION_TIMEOUT_MS", "10000")]);
    let (_sandbox, server) = Sandbox::with_server(&variables).await;
    server.chat(question("我对花生过敏。")).await.rest().await.unwrap();
    eventually("the fact is learned", async || server.remembered().await.contains(&"用户对花生过敏。".to_owned()))
        .await;
}

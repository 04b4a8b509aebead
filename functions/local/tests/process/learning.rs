//! What was said in one conversation is known in another.

use agent_service::proto::agent_v1::{
    self as pb, chat_response::Content, conversation_service_client::ConversationServiceClient,
};

use crate::server::{Home, Server, USER, eventually, question};

/// Titles of conversations, the latest first.
async fn titles(server: &Server) -> Vec<String> {
    let mut client = ConversationServiceClient::new(server.channel().await);
    let request = pb::ListSessionsRequest { user_id: USER.to_owned(), ..Default::default() };
    let listed = client.list_sessions(request).await.unwrap().into_inner();
    listed.sessions.into_iter().map(|session| session.title).collect()
}

#[tokio::test]
async fn what_was_said_in_one_conversation_is_known_in_the_next_and_after_a_restart() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    server.chat(question("我对花生过敏。")).await.rest().await.unwrap();
    eventually("it is learned", async || server.remembered().await.contains(&"用户对花生过敏。".to_owned())).await;
    eventually("it has a title", async || titles(&server).await == ["我对花生过敏"]).await;
    server.process.stop().await;
    let server = home.serving(&[]).await;
    let frames = server.chat(question("我对什么过敏？")).await.rest().await.unwrap();
    let grounded = frames.iter().find_map(|frame| match &frame.content {
        Some(Content::Citations(block)) => Some(block.citations.iter().map(|citation| citation.content.as_str())),
        _ => None,
    });
    assert!(grounded.unwrap().any(|content| content == "用户对花生过敏。"));
}

#[tokio::test]
async fn who_wants_it_is_not_learned_of() {
    let home = Home::new();
    let server = home.serving(&[("LEARNING", "off")]).await;
    server.chat(question("I'm allergic to peanuts. What can I eat?")).await.rest().await.unwrap();
    eventually("it has a title", async || titles(&server).await == ["I'm allergic to peanuts"]).await;
    assert_eq!(server.remembered().await, [""; 0]);
}

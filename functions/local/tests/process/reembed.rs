//! Moving a store to the configured embedding model, from the command line.

use agent_service::postgres::embedded;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::server::Home;

#[tokio::test]
async fn vectors_are_made_beside_a_running_server_and_without_one() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    server.remember("eigenvalues").await;
    let options = embedded::connect_options(&home.data()).unwrap();
    let mut behind = PgConnection::connect_with(&options).await.unwrap();
    behind.execute("update memory_vectors set model = 'older/256'").await.unwrap();

    let moved = home.run(&["reembed", "--prune"], &[]).await;
    assert_eq!(moved.code, Some(0), "{moved:?}");
    assert!(moved.stdout.contains("1 memories have got vectors of hashed"), "{moved:?}");
    assert!(moved.stdout.contains("1 vectors of other models are forgotten"), "{moved:?}");
    let left: i64 = sqlx::query_scalar("select count(*) from memory_vectors").fetch_one(&mut behind).await.unwrap();
    assert_eq!(left, 1);
    assert_eq!(server.remembered().await, ["eigenvalues"], "the server goes on");
    behind.close().await.unwrap();
    server.process.stop().await;

    let again = home.run(&["reembed"], &[]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stdout.contains("0 memories have got vectors"), "{again:?}");
}

#[tokio::test]
async fn a_text_that_can_have_no_vector_does_not_keep_those_of_others_from_being_forgotten() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    server.remember("eigenvalues").await;
    let options = embedded::connect_options(&home.data()).unwrap();
    let mut behind = PgConnection::connect_with(&options).await.unwrap();
    // One of a user whose name nobody may have any more, so that no vector can be made.
    behind
        .execute(
            "update memory_vectors set model = 'older/256';
             insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, created_at)
             select '', id, content, content_digest, source_type, tags, metadata, created_at from memories;
             insert into memory_vectors (user_id, model, memory_id, digest, embedding)
             select '', model, memory_id, digest, embedding from memory_vectors",
        )
        .await
        .unwrap();
    let pruned = home.run(&["reembed", "--prune"], &[]).await;
    assert_eq!(pruned.code, Some(0), "a further run would come to the same: {pruned:?}");
    assert!(pruned.stderr.contains("1 memories are without"), "{pruned:?}");
    assert!(pruned.stdout.contains("1 vectors of other models are forgotten"), "{pruned:?}");
    let left: Vec<String> = sqlx::query_scalar("select user_id from memory_vectors where model = 'older/256'")
        .fetch_all(&mut behind)
        .await
        .unwrap();
    assert_eq!(left, [""], "it keeps the one that it has");
}

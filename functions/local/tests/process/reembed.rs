//! `agent-local reembed`.

use sqlx::{Connection as _, Executor as _};

use crate::process::Sandbox;

#[tokio::test]
async fn reembed_works_with_and_without_running_server() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    server.remember("eigenvalues").await;
    let mut admin = sandbox.connect_as_owner().await;
    admin.execute("update memory_vectors set model = 'older/256'").await.unwrap();

    let moved = sandbox.run(&["reembed", "--prune"], &[]).await;
    assert_eq!(moved.code, Some(0), "{moved:?}");
    assert!(moved.stdout.contains("for 1 memories"), "{moved:?}");
    assert!(moved.stdout.contains("Deleted 1 vectors of other models"), "{moved:?}");
    let left: i64 = sqlx::query_scalar("select count(*) from memory_vectors").fetch_one(&mut admin).await.unwrap();
    assert_eq!(left, 1);
    assert_eq!(server.remembered().await, ["eigenvalues"], "the running server is unaffected");
    admin.close().await.unwrap();
    server.process.stop().await;

    let again = sandbox.run(&["reembed"], &[]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stdout.contains("for 0 memories"), "{again:?}");
}

#[tokio::test]
async fn prune_keeps_vector_of_text_that_cannot_be_embedded() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    server.remember("eigenvalues").await;
    let mut admin = sandbox.connect_as_owner().await;
    // A memory of an invalid user id, for which no vector can be made.
    admin
        .execute(
            "update memory_vectors set model = 'older/256';
             insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, created_at)
             select '', id, content, content_digest, source_type, tags, metadata, created_at from memories;
             insert into memory_vectors (user_id, model, memory_id, digest, embedding)
             select '', model, memory_id, digest, embedding from memory_vectors",
        )
        .await
        .unwrap();
    let pruned = sandbox.run(&["reembed", "--prune"], &[]).await;
    assert_eq!(pruned.code, Some(0), "a second run would change nothing: {pruned:?}");
    assert!(pruned.stderr.contains("1 memories have no vector"), "{pruned:?}");
    assert!(pruned.stdout.contains("Deleted 1 vectors of other models"), "{pruned:?}");
    let left: Vec<String> = sqlx::query_scalar("select user_id from memory_vectors where model = 'older/256'")
        .fetch_all(&mut admin)
        .await
        .unwrap();
    assert_eq!(left, [""], "the memory keeps its old vector");
}

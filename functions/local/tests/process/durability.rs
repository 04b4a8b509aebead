//! Acknowledged memories survive crashes.

use crate::{
    process::{Sandbox, Signal, kill},
    server::memories,
};

#[tokio::test]
async fn acknowledged_memory_survives_repeated_kills() {
    let sandbox = Sandbox::new();
    let mut expected = Vec::new();
    for round in 0..5 {
        let server = sandbox.start_serving(&[]).await;
        assert_eq!(server.remembered().await, expected);
        let content = format!("round {round}");
        server.remember(&content).await;
        server.process.kill().await;
        expected.push(content);
    }
    assert_eq!(sandbox.start_serving(&[]).await.remembered().await, expected);
}

#[tokio::test]
async fn acknowledged_memories_survive_kill_under_load() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let mut client = server.memory().await;
    let (acknowledge, mut acknowledged) = tokio::sync::watch::channel(0_usize);
    let writer = tokio::spawn(async move {
        let mut count = 0;
        while client.add_memories(memories(&[&format!("memory {count:06}")])).await.is_ok() {
            count += 1;
            acknowledge.send_replace(count);
        }
        count
    });
    acknowledged.wait_for(|count| *count >= 30).await.unwrap();
    server.process.kill().await;
    let acknowledged = writer.await.unwrap();
    let stored = sandbox.start_serving(&[]).await.remembered().await.len();
    // One more may be committed, but not acknowledged.
    assert!((acknowledged..=acknowledged + 1).contains(&stored), "{acknowledged} acknowledged, {stored} stored");
}

#[tokio::test]
async fn memory_survives_kill_of_server_and_postgres() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    server.remember("kept").await;
    kill(sandbox.postmaster().unwrap(), Signal::KILL);
    server.process.kill().await;
    let server = sandbox.start_serving(&[]).await;
    assert_eq!(server.remembered().await, ["kept"]);
    let mut client = server.memory().await;
    assert_eq!(client.add_memories(memories(&["kept too"])).await.unwrap().into_inner().added, 1);
}

//! Nothing that was acknowledged is lost.

use crate::server::{Home, Signal, kill, memories};

#[tokio::test]
async fn a_memory_acknowledged_before_a_kill_is_found_after_the_restart_round_after_round() {
    let home = Home::new();
    let mut expected = Vec::new();
    for round in 0..5 {
        let server = home.serving(&[]).await;
        assert_eq!(server.remembered().await, expected);
        let content = format!("round {round}");
        server.remember(&content).await;
        server.process.kill().await;
        expected.push(content);
    }
    assert_eq!(home.serving(&[]).await.remembered().await, expected);
}

#[tokio::test]
async fn no_memory_acknowledged_under_load_is_lost_by_a_kill() {
    let home = Home::new();
    let server = home.serving(&[]).await;
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
    let kept = home.serving(&[]).await.remembered().await.len();
    // One more may have been committed without its answer getting through.
    assert!((acknowledged..=acknowledged + 1).contains(&kept), "{acknowledged} acknowledged, {kept} kept");
}

#[tokio::test]
async fn a_memory_survives_the_kill_of_the_server_and_of_its_postgres_at_once() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    server.remember("kept").await;
    kill(home.postmaster().unwrap(), Signal::KILL);
    server.process.kill().await;
    let server = home.serving(&[]).await;
    assert_eq!(server.remembered().await, ["kept"]);
    // It can be written to as well.
    let mut client = server.memory().await;
    assert_eq!(client.add_memories(memories(&["kept too"])).await.unwrap().into_inner().added, 1);
}

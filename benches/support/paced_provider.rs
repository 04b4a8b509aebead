//! A provider whose deltas hold their send time, so that readers can measure the latency.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::sleep_until,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Milliseconds since a delta was sent.
pub fn lateness(delta: &str) -> Option<f64> {
    let sent: u64 = delta.trim().parse().ok()?;
    Some(now().saturating_sub(sent) as f64 / 1e6)
}

/// Nanoseconds since 1970: a clock that all processes of a machine share.
fn now() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or_default()
}

/// Answers every request with `deltas` deltas, one every `pace`.
pub async fn serve(listener: TcpListener, pace: Duration, deltas: usize) -> Result<(), Error> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut socket = socket;
            // An error ends this connection only.
            while answer(&mut socket, pace, deltas).await.is_ok() {}
        });
    }
}

async fn answer(socket: &mut TcpStream, pace: Duration, deltas: usize) -> Result<(), Error> {
    let mut request = Vec::new();
    let mut piece = vec![0; 16 * 1024];
    loop {
        let read = socket.read(&mut piece).await?;
        if read == 0 {
            return Err("the client disconnected".into());
        }
        request.extend_from_slice(&piece[..read]);
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if request.len() >= end + 4 + length.unwrap_or_default() {
            break;
        }
    }
    socket
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    let chunk = |event: &str| format!("{:x}\r\ndata: {event}\n\n\r\n", event.len() + 8);
    let mut due = tokio::time::Instant::now();
    for _ in 0..deltas {
        sleep_until(due).await;
        due += pace;
        let event =
            format!("{{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}},\"finish_reason\":null}}]}}", now());
        socket.write_all(chunk(&event).as_bytes()).await?;
    }
    let end = "{\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}";
    socket.write_all([&chunk(end), &chunk("[DONE]"), "0\r\n\r\n"].concat().as_bytes()).await?;
    Ok(())
}

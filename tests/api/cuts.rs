//! Connections that break anywhere: what arrives in pieces is what would have arrived in one.

use std::net::SocketAddr;

use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::{Request, transport::Channel};

use crate::{
    fake_provider::{FakeProvider, Step, delta, finish, head, usage},
    harness::{PATIENCE, TestServer, ask, check_contract, joined_deltas},
};

/// Passes one connection on, and breaks it after so many bytes of the server.
async fn breaking_after(server: SocketAddr, bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(server).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let up = tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
        let (mut left, mut piece) = (bytes, [0; 1024]);
        while left > 0 {
            let most = left.min(piece.len());
            let Ok(read @ 1..) = from_server.read(&mut piece[..most]).await else { break };
            left -= read;
            if to_client.write_all(&piece[..read]).await.is_err() {
                break;
            }
        }
        // Both halves go at once, in the middle of whatever is on its way.
        up.abort();
    });
    address
}

/// Frames until the end, or until the connection breaks.
async fn read(address: SocketAddr, request: Request<pb::ChatRequest>) -> Vec<pb::ChatResponse> {
    let mut frames = Vec::new();
    let reading = async {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await?;
        let mut stream = AgentServiceClient::new(channel).stream_chat(request).await?.into_inner();
        while let Some(frame) = stream.message().await? {
            frames.push(frame);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    // It broke, which is what this is about.
    let _ = timeout(PATIENCE, reading).await.expect("the stream hangs");
    frames
}

#[tokio::test]
async fn an_answer_that_is_cut_at_any_byte_and_resumed_is_the_uninterrupted_one() {
    let mut provider = FakeProvider::start().await;
    let one = TestServer::start(&provider.variables()).await;
    let url = one.database.as_ref().unwrap().service_url();
    let two = TestServer::start_on(&url, &provider.variables()).await;
    let words: Vec<String> = (0..120).map(|number| format!("词{number} ")).collect();
    for round in 0..6_usize {
        let mut steps = vec![Step::Send(head(200, "text/event-stream"))];
        steps.extend(words.iter().map(|word| Step::Send(format!("data: {}\n\n", delta(word)).into_bytes())));
        steps.push(Step::Send(
            format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", finish("stop"), usage(1, 120)).into_bytes(),
        ));
        provider.script(steps).await;
        let asked =
            || pb::ChatRequest { request_id: format!("r{round}"), session_id: format!("s{round}"), ..ask("count") };
        let mut frames: Vec<pb::ChatResponse> = Vec::new();
        let mut pieces = 0;
        // Each piece is a little longer than the one before, and every other one comes from the other instance.
        while frames.last().is_none_or(|frame| frame.finish_reason() == pb::FinishReason::Null) {
            let mut request = Request::new(asked());
            if let Some(last) = frames.last() {
                request.metadata_mut().insert("x-last-response-id", last.response_id.parse().unwrap());
            }
            let server = if pieces % 2 == round % 2 { &one } else { &two };
            let bytes = 1_500 + 700 * round + 331 * pieces;
            frames.extend(read(breaking_after(server.address, bytes).await, request).await);
            pieces += 1;
            assert!(pieces < 200, "it never ends");
        }
        assert!(pieces > 2, "it was cut");
        check_contract(&frames);
        assert_eq!(joined_deltas(&frames), words.concat());
    }
    assert_eq!(provider.received().len(), 6, "the provider was asked once for each");
}

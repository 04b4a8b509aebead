//! Connections that break at any byte: the resumed connections add up to the uninterrupted stream.

use std::net::SocketAddr;

use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::{Request, transport::Channel};

use crate::{
    fake_provider::{FakeProvider, delta, events, finish, stream_head, usage},
    harness::{TEST_TIMEOUT, TestServer, assert_contract, chat_request, joined_deltas, resume_after},
};

/// A proxy of one connection that breaks it after a number of bytes from the server.
async fn start_cutting_proxy(server: SocketAddr, bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(server).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let up = tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
        let (mut left, mut buffer) = (bytes, [0; 1024]);
        while left > 0 {
            let limit = left.min(buffer.len());
            let Ok(read @ 1..) = from_server.read(&mut buffer[..limit]).await else { break };
            left -= read;
            if to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        // Drops both directions, possibly within a frame.
        up.abort();
    });
    address
}

async fn read_frames(address: SocketAddr, request: Request<pb::ChatRequest>) -> Vec<pb::ChatResponse> {
    let mut frames = Vec::new();
    let reading = async {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await?;
        let mut stream = AgentServiceClient::new(channel).stream_chat(request).await?.into_inner();
        while let Some(frame) = stream.message().await? {
            frames.push(frame);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    };
    // An error is expected: the connection broke.
    let _ = timeout(TEST_TIMEOUT, reading).await.expect("the stream hangs");
    frames
}

#[tokio::test]
async fn answer_cut_at_any_byte_resumes_without_loss() {
    let mut provider = FakeProvider::start().await;
    let one = TestServer::start(&provider.variables()).await;
    let two = one.start_second(&provider.variables()).await;
    let words: Vec<String> = (0..120).map(|number| format!("词{number} ")).collect();
    for round in 0..6_usize {
        let mut steps = vec![stream_head()];
        steps.extend(words.iter().map(|word| events(&[&delta(word)])));
        steps.push(events(&[&finish("stop"), &usage(1, 120), "[DONE]"]));
        provider.script(steps).await;
        let question = || chat_request(&format!("r{round}"), &format!("s{round}"), "count");
        let mut frames: Vec<pb::ChatResponse> = Vec::new();
        let mut connections = 0;
        // Each connection lasts a little longer than the one before, and the instances alternate.
        while frames.last().is_none_or(|frame| frame.finish_reason() == pb::FinishReason::Null) {
            let request = match frames.last() {
                Some(last) => resume_after(question(), last),
                None => Request::new(question()),
            };
            let server = if connections % 2 == round % 2 { &one } else { &two };
            let bytes = 1_500 + 700 * round + 331 * connections;
            frames.extend(read_frames(start_cutting_proxy(server.address, bytes).await, request).await);
            connections += 1;
            assert!(connections < 200, "too many connections for one answer");
        }
        assert!(connections > 2, "the answer arrived without a cut");
        assert_contract(&frames);
        assert_eq!(joined_deltas(&frames), words.concat());
    }
    assert_eq!(provider.take_requests().len(), 6, "the provider was called more than once for an answer");
}

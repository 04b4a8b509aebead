//! Clients that begin a connection or a request and do not complete it, or send a frame that is malformed.

use std::{net::SocketAddr, sync::Arc};

use agent_service::transport::{RpcPaths, server::Listener};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Duration, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, body::Body, service::Routes, transport::Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tower::ServiceExt as _;

use crate::{
    harness::{TestServer, ask, config, grpc_frame},
    wire::{CHAT, GRPC, WEB, post, tls_listener},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Without any setting.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The paused clock passes the time at once.
async fn assert_closes_after(
    seconds: u64,
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
    sent: &[u8],
    kind: &str,
) {
    connection.write_all(sent).await.unwrap();
    connection.flush().await.unwrap();
    let mut received = Vec::new();
    // Over TLS it ends without an alert, which is an error.
    let early = timeout(Duration::from_secs(seconds - 1), connection.read_to_end(&mut received)).await;
    assert!(early.is_err(), "{kind}, {sent:?}: closed early with {early:?}");
    let late = timeout(Duration::from_secs(3), connection.read_to_end(&mut received)).await;
    assert!(late.is_ok(), "{kind}, {sent:?}: the connection stays open");
}

#[tokio::test(start_paused = true)]
async fn connection_whose_protocol_stays_unknown_is_closed() {
    let (plain, _stop) = health_listener().await;
    let (encrypted, client, _stop_encrypted) = tls_listener().await;
    let cut_settings = [PREFACE, &SETTINGS[..8]].concat();
    for sent in
        [&b""[..], b"P", &PREFACE[..23], PREFACE, &cut_settings, b"POST / HT", b"POST / HTTP/1.1\r\nhost: x\r\n"]
    {
        assert_closes_after(10, TcpStream::connect(plain).await.unwrap(), sent, "plain").await;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client.clone()));
        let socket = TcpStream::connect(encrypted).await.unwrap();
        let stream = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
        assert_closes_after(10, stream, sent, "TLS").await;
    }
}

#[tokio::test(start_paused = true)]
async fn tls_handshake_that_stalls_is_closed_after_10_seconds() {
    let (address, _client, _stop) = tls_listener().await;
    // A record of a handshake message, with less than it announces.
    for sent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"] {
        assert_closes_after(10, TcpStream::connect(address).await.unwrap(), sent, "TLS").await;
    }
}

#[tokio::test(start_paused = true)]
async fn head_that_trickles_is_closed_after_10_seconds() {
    let (address, _stop) = health_listener().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    let begin = tokio::time::Instant::now();
    let (mut reader, mut writer) = socket.split();
    let trickle = async {
        while writer.write_all(b"x-header: x\r\n").await.is_ok() {
            sleep(Duration::from_millis(900)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut received = Vec::new();
    tokio::select! {
        // Reset, because the last bytes are not read.
        _ = reader.read_to_end(&mut received) => {}
        () = trickle => unreachable!("it never ends"),
    }
    assert!((9..=11).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn http2_connection_that_answers_no_ping_is_closed() {
    let (address, _stop) = health_listener().await;
    let begun = [PREFACE, SETTINGS].concat();
    // HEADERS without END_HEADERS, of which the rest never comes.
    let cut_headers = [&begun[..], b"\0\0\x01\x01\0\0\0\0\x01\x83"].concat();
    for sent in [begun, cut_headers] {
        assert_closes_after(15, TcpStream::connect(address).await.unwrap(), &sent, "HTTP/2").await;
    }
}

/// A listener before the health service, which needs nothing else.
async fn health_listener() -> (SocketAddr, DropGuard) {
    let listener = Listener::bind(&config(&[("GRPC_PORT", "0")]).server).await.unwrap();
    let address = listener.address();
    let stop = CancellationToken::new();
    let (_, health) = tonic_health::server::health_reporter();
    let paths = RpcPaths::of_service("grpc.health.v1.Health", &["Check"]);
    tokio::spawn(listener.serve(Routes::new(health), paths, stop.clone()));
    (address, stop.drop_guard())
}

/// The status of a call over HTTP/2 with this request, and the seconds that it took.
async fn check(address: SocketAddr, body: impl Stream<Item = Bytes> + Send + 'static) -> (String, u64) {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let body = body.map(|bytes| Ok::<_, Status>(Frame::data(bytes)));
    let request = http::Request::post(CHECK).header("content-type", GRPC).header("te", "trailers");
    let begin = tokio::time::Instant::now();
    let call = channel.oneshot(request.body(Body::new(StreamBody::new(body))).unwrap());
    let response = timeout(Duration::from_mins(10), call).await.expect("never answered").unwrap();
    (response.headers()["grpc-status"].to_str().unwrap().to_owned(), begin.elapsed().as_secs())
}

fn delayed(pieces: Vec<Bytes>, delay: Duration) -> impl Stream<Item = Bytes> + Send {
    stream::iter(pieces).then(move |piece| async move {
        sleep(delay).await;
        piece
    })
}

#[tokio::test(start_paused = true)]
async fn request_that_is_not_received_in_time_is_deadline_exceeded() {
    let (address, _stop) = health_listener().await;
    let timed_out = |(status, seconds): (String, u64)| status == "4" && (29..=31).contains(&seconds);
    let nothing = check(address, stream::pending()).await;
    assert!(timed_out(nothing.clone()), "{nothing:?}");
    let head = Bytes::from_static(b"\0\0\0\x03\xe8");
    let begun = check(address, stream::iter([head.clone()]).chain(stream::pending())).await;
    assert!(timed_out(begun.clone()), "{begun:?}");
    let trickle = stream::iter([head]).chain(delayed(vec![Bytes::from_static(b"x"); 500], Duration::from_secs(9)));
    let trickle = check(address, trickle).await;
    assert!(timed_out(trickle.clone()), "{trickle:?}");
}

#[tokio::test(start_paused = true)]
async fn http1_request_that_is_not_received_in_time_is_answered_and_ends_its_connection() {
    let (address, _stop) = health_listener().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!("POST {CHECK} HTTP/1.1\r\nhost: x\r\ncontent-type: {WEB}\r\ncontent-length: 1000\r\n\r\n\0\0\0");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let end = timeout(Duration::from_mins(1), socket.read_to_end(&mut answer)).await;
    end.expect("the connection stays open").unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status: 4\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn slow_upload_that_makes_progress_is_received() {
    let (address, _stop) = health_listener().await;
    let request = HealthCheckRequest { service: "x".repeat(200_000) };
    let frame = grpc_frame(&request.encode_to_vec());
    let pieces = frame.chunks(16 * 1024).map(Bytes::copy_from_slice).collect();
    let (status, seconds) = check(address, delayed(pieces, Duration::from_secs(25))).await;
    assert_eq!(status, "5", "the service is unknown; after {seconds} s");
    assert!(seconds > 250, "{seconds}");
}

#[tokio::test]
async fn malformed_frame_is_the_fault_of_the_client() {
    let server = TestServer::start_without_database(&[("CONVERSATIONS", "off")]).await;
    let frame = grpc_frame(&ask("hi").encode_to_vec());
    let with_flag = |flag: u8| [&[flag], &frame[1..]].concat();
    for content_type in [GRPC, WEB] {
        for (body, status) in [
            (vec![], "12"),
            (frame[..3].to_vec(), "3"),
            (frame[..frame.len() - 1].to_vec(), "3"),
            (with_flag(2), "3"),
            // The specification of compression demands INTERNAL.
            (with_flag(1), "13"),
        ] {
            let answer = post(&server, CHAT, content_type, &[], body.clone()).await;
            assert_eq!(answer.header("grpc-status"), status, "{content_type} {body:?}: {answer:?}");
        }
    }
}

//! Bytes on the wire: compression, gRPC-Web text, HTTP/1.1 connections, TLS, probes and paths.

use std::{io::Write as _, sync::Arc};

use agent_service::{
    proto::agent_v1 as pb,
    transport::{RpcPaths, server::Listener},
};
use flate2::{Compression, write::GzEncoder};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    fake_provider::{FakeProvider, Step, stream_head},
    harness::{TEST_TIMEOUT, TestServer, ask, config, grpc_frame, http, memory_query},
};

pub const CHAT: &str = "/agent.v1.AgentService/StreamChat";
pub const GRPC: &str = "application/grpc";
pub const WEB: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";
const WITHOUT_CONVERSATIONS: (&str, &str) = ("CONVERSATIONS", "off");

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn compressed_frame(compressed: &[u8]) -> Vec<u8> {
    let mut frame = grpc_frame(compressed);
    frame[0] = 1;
    frame
}

pub async fn post(
    server: &TestServer,
    path: &str,
    content_type: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    let client = if content_type == GRPC { http().http2_prior_knowledge() } else { http().http1_only() };
    let mut call = client.build().unwrap().post(format!("http://{}{path}", server.address));
    call = call.header("content-type", content_type).header("te", "trailers");
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    let response = call.body(body).send().await.unwrap();
    let headers = response.headers().clone();
    Answer { status: response.status().as_u16(), headers, body: response.bytes().await.unwrap().to_vec() }
}

pub struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} and {} bytes", self.status, self.headers, self.body.len())
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

/// The flags and contents of length-prefixed frames.
fn frames_of(mut rest: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, tail)) = rest.split_at_checked(5) {
        let (content, tail) = tail.split_at(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize);
        frames.push((head[0], content.to_vec()));
        rest = tail;
    }
    assert!(rest.is_empty(), "a frame is cut");
    frames
}

/// A text response: base64 of which each padded segment ends where it is flushed.
fn decode_text(body: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let decode = |quad: &[u8]| base64::engine::general_purpose::STANDARD.decode(quad).unwrap();
    body.chunks(4).flat_map(decode).collect()
}

fn encode_text(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn gzip_request_is_answered_with_identity() {
    let server = TestServer::start_without_database(&[WITHOUT_CONVERSATIONS]).await;
    let body = compressed_frame(&gzip(&ask("hi").encode_to_vec()));
    let headers = [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip")];
    for content_type in [GRPC, WEB] {
        let answer = post(&server, CHAT, content_type, &headers, body.clone()).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, ""), "{content_type}: {answer:?}");
        assert!(matches!(answer.header("grpc-encoding"), "" | "identity"), "{content_type}: {answer:?}");
        let frames = frames_of(&answer.body);
        assert!(frames.len() > 3 && frames.iter().all(|(flags, _)| flags & 1 == 0), "{content_type}");
        assert!(pb::ChatResponse::decode(&*frames[0].1).unwrap().created_at > 0);
    }
    let text = encode_text(&body).into_bytes();
    let answer = post(&server, CHAT, TEXT, &headers, text).await;
    assert_eq!((answer.status, answer.header("grpc-status")), (200, ""), "{answer:?}");
    // An uncompressed message is allowed in a call that has an encoding.
    let plain = post(&server, CHAT, WEB, &headers, grpc_frame(&ask("hi").encode_to_vec())).await;
    assert_eq!(plain.header("grpc-status"), "");
}

#[tokio::test]
async fn gzip_is_accepted_by_every_service() {
    let server = TestServer::start(&[]).await;
    let health = tonic_health::pb::HealthCheckRequest::default().encode_to_vec();
    let sessions = pb::ListSessionsRequest { user_id: "ann".into(), ..Default::default() }.encode_to_vec();
    let memories = pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() }.encode_to_vec();
    for (path, message) in [
        ("/agent.v1.AgentService/RetrieveMemory", memory_query("ann", "x").encode_to_vec()),
        ("/agent.v1.MemoryService/ListMemories", memories),
        ("/agent.v1.ConversationService/ListSessions", sessions),
        ("/grpc.health.v1.Health/Check", health),
    ] {
        let answer = post(&server, path, WEB, &[("grpc-encoding", "gzip")], compressed_frame(&gzip(&message))).await;
        let trailers = frames_of(&answer.body).pop().map(|(_, content)| String::from_utf8(content).unwrap());
        assert!(trailers.as_deref().is_some_and(|text| text.contains("grpc-status:0")), "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn other_encodings_are_unimplemented_with_the_supported_list() {
    let server = TestServer::start_without_database(&[WITHOUT_CONVERSATIONS]).await;
    for encoding in ["deflate", "br", "zstd", "snappy", "x"] {
        for content_type in [GRPC, WEB] {
            let body = compressed_frame(&ask("hi").encode_to_vec());
            let answer = post(&server, CHAT, content_type, &[("grpc-encoding", encoding)], body).await;
            assert_eq!(answer.header("grpc-status"), "12", "{encoding} {content_type}: {answer:?}");
            let accepted: Vec<_> = answer.header("grpc-accept-encoding").split(',').map(str::trim).collect();
            assert!(accepted.contains(&"gzip") && accepted.contains(&"identity"), "{accepted:?}");
        }
    }
}

#[tokio::test]
async fn malformed_and_oversized_gzip_are_the_fault_of_the_client() {
    let server = TestServer::start_without_database(&[WITHOUT_CONVERSATIONS]).await;
    let bomb = gzip(&vec![0; 51 << 20]);
    let mut cut = gzip(&ask("hi").encode_to_vec());
    cut.truncate(cut.len() / 2);
    for (compressed, status) in [(bomb, "8"), (cut, "3"), (b"no gzip".to_vec(), "3")] {
        for content_type in [GRPC, WEB] {
            let body = compressed_frame(&compressed);
            let answer = post(&server, CHAT, content_type, &[("grpc-encoding", "gzip")], body).await;
            assert_eq!(answer.header("grpc-status"), status, "{content_type}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn text_request_without_accept_gets_text() {
    let server = TestServer::start_without_database(&[WITHOUT_CONVERSATIONS]).await;
    let body = encode_text(&grpc_frame(&ask("hi").encode_to_vec())).into_bytes();
    for headers in
        [&[][..], &[("accept", "*/*")], &[("accept", TEXT)], &[("accept", "application/grpc-web-text+proto")]]
    {
        let answer = post(&server, CHAT, TEXT, headers, body.clone()).await;
        assert!(answer.header("content-type").starts_with(TEXT), "{headers:?}: {answer:?}");
        let (flags, trailers) = frames_of(&decode_text(&answer.body)).pop().unwrap();
        assert!(flags == 0x80 && String::from_utf8_lossy(&trailers).contains("grpc-status:0"), "{headers:?}");
    }
    let rejected = post(&server, CHAT, TEXT, &[], encode_text(&grpc_frame(&ask("").encode_to_vec())).into()).await;
    assert!(rejected.header("content-type").starts_with(TEXT) && rejected.header("grpc-status") == "3");
}

#[tokio::test]
async fn base64_may_be_padded_in_the_middle_of_a_body() {
    let server = TestServer::start_without_database(&[WITHOUT_CONVERSATIONS]).await;
    let frame = grpc_frame(&ask("hello there").encode_to_vec());
    // Each length of padding occurs, and several paddings in one body.
    for split in 1..=6 {
        let (first, second) = frame.split_at(split);
        let (second, third) = second.split_at(second.len() / 2);
        let body = [first, second, third].map(encode_text).concat();
        let answer = post(&server, CHAT, TEXT, &[], body.into()).await;
        assert_eq!(answer.header("grpc-status"), "", "split at {split}: {answer:?}");
    }
    for garbage in ["AA=A", "=AAA", "A===", "AAAA=", "AA", "AAA", "AA==A", "AA-_", "AAA\u{e9}"] {
        let answer = post(&server, CHAT, TEXT, &[], garbage.into()).await;
        assert_eq!(answer.header("grpc-status"), "3", "{garbage}: {answer:?}");
    }
}

#[tokio::test]
async fn streams_ask_proxies_not_to_buffer() {
    let server = TestServer::start(&[]).await;
    let export = pb::ExportMemoriesRequest { user_id: "ann".into() }.encode_to_vec();
    for content_type in [GRPC, WEB] {
        for (path, message) in
            [(CHAT, ask("hi").encode_to_vec()), ("/agent.v1.MemoryService/ExportMemories", export.clone())]
        {
            let answer = post(&server, path, content_type, &[], grpc_frame(&message)).await;
            assert_eq!((answer.status, answer.header("x-accel-buffering")), (200, "no"), "{content_type} {path}");
        }
    }
}

async fn get(server: &TestServer, method: reqwest::Method, path: &str) -> Answer {
    request(server, http(), method, path).await
}

async fn request(server: &TestServer, client: reqwest::ClientBuilder, method: reqwest::Method, path: &str) -> Answer {
    let response = client.build().unwrap().request(method, format!("http://{}{path}", server.address)).send();
    let response = response.await.unwrap();
    let headers = response.headers().clone();
    Answer { status: response.status().as_u16(), headers, body: response.bytes().await.unwrap().to_vec() }
}

#[tokio::test]
async fn probes_report_process_and_database() {
    use reqwest::Method;
    let server =
        TestServer::start_without_database(&[("AUTH", "jwt"), ("JWT_SECRET", "a secret of thirty-two bytes-----")])
            .await;
    for (is_ready, status) in [(true, 200), (false, 503), (true, 200)] {
        server.ready.send_replace(is_ready);
        for method in [Method::GET, Method::HEAD] {
            for client in [|| http().http1_only(), || http().http2_prior_knowledge()] {
                for (path, expected) in [("/healthz", 200), ("/readyz", status)] {
                    let answer = request(&server, client(), method.clone(), path).await;
                    assert_eq!(answer.status, expected, "{method} {path} {is_ready}");
                    assert_eq!(answer.body.is_empty(), method == Method::HEAD, "{answer:?}");
                    assert_ne!(answer.header("content-length"), "0", "of the body that GET has: {answer:?}");
                    assert_ne!(answer.header("content-length"), "", "{answer:?}");
                }
            }
        }
    }
    let answer = get(&server, Method::GET, "/healthz?verbose").await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    let post = get(&server, Method::POST, "/healthz").await;
    assert_eq!((post.status, post.header("allow")), (405, "GET, HEAD"));
    let disabled = TestServer::start_without_database(&[("GRPC_HEALTH", "off")]).await;
    assert_eq!(get(&disabled, Method::GET, "/healthz").await.status, 404);
}

#[tokio::test]
async fn unknown_paths_are_not_found() {
    use reqwest::Method;
    let server = TestServer::start_without_database(&[]).await;
    for path in [
        "/nothing",
        "/favicon.ico",
        "/healthz/",
        "/agent.v1.AgentService",
        "/agent.v1.AgentService/",
        "/agent.v1.AgentService/NoSuchMethod",
        "/agent.v1.NoSuchService/StreamChat",
        "/prefix/agent.v1.AgentService/StreamChat",
    ] {
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::POST, Method::PATCH] {
            assert_eq!(get(&server, method.clone(), path).await.status, 404, "{method} {path}");
        }
    }
    for path in [CHAT, "/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        let answer = get(&server, Method::GET, path).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "POST"), "{path}");
        assert_eq!(get(&server, Method::POST, path).await.status, 415, "{path}");
    }
    // gRPC clients are told in their own terms.
    for content_type in [GRPC, WEB] {
        let answer = post(&server, "/nothing.at.All/Call", content_type, &[], grpc_frame(b"")).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, "12"), "{content_type}");
    }
}

fn raw_request(body: &[u8], headers: &str) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: {WEB}\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

async fn read_to_end(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    timeout(TEST_TIMEOUT, socket.read_to_end(&mut bytes)).await.expect("the connection stays open").unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn half_closed_request_is_answered() {
    let server = TestServer::start(&[("DEMO_CHUNK_DELAY_MS", "1")]).await;
    let chat = raw_request(&grpc_frame(&ask("hi").encode_to_vec()), "");
    // In one segment, and with the end of the request in a segment of its own.
    for pieces in [vec![&chat[..]], vec![&chat[..chat.len() - 7], &chat[chat.len() - 7..]]] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        for piece in pieces {
            socket.write_all(piece).await.unwrap();
        }
        socket.shutdown().await.unwrap();
        let answer = read_to_end(&mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        assert!(answer.contains("grpc-status:0") && answer.ends_with("0\r\n\r\n"), "{answer:?}");
    }
}

#[tokio::test]
async fn request_that_is_cut_by_a_half_close_ends_the_connection() {
    let server = TestServer::start_without_database(&[]).await;
    let chat = raw_request(&grpc_frame(&ask("hi").encode_to_vec()), "");
    for length in [10, chat.len() - 3] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(&chat[..length]).await.unwrap();
        socket.shutdown().await.unwrap();
        assert!(!read_to_end(&mut socket).await.contains("Thinking"), "{length}");
    }
}

#[tokio::test]
async fn client_that_closes_during_silence_ends_its_turn() {
    let mut provider = FakeProvider::start().await;
    // Silent: nothing is written to the client that could fail.
    provider.script(vec![stream_head(), Step::AwaitDisconnect]).await;
    let variables = [&provider.variables()[..], &[WITHOUT_CONVERSATIONS]].concat();
    let server = TestServer::start_without_database(&variables).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&raw_request(&grpc_frame(&ask("hi").encode_to_vec()), "")).await.unwrap();
    timeout(TEST_TIMEOUT, provider.requests.recv()).await.expect("the provider is asked").unwrap();
    let mut received = String::new();
    while !received.contains("answer") {
        let mut bytes = [0; 4096];
        let read = socket.read(&mut bytes).await.unwrap();
        received.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    // FIN, as from a closed browser tab.
    drop(socket);
    timeout(TEST_TIMEOUT, provider.disconnects.recv()).await.expect("the turn goes on").unwrap();
}

/// Under a paused clock the time between two events passes at once, and in order.
async fn idle_listener(variables: &[(&str, &str)]) -> (TcpStream, CancellationToken) {
    let listener = Listener::bind(&config(&[&[("GRPC_PORT", "0")], variables].concat()).server).await.unwrap();
    let address = listener.address();
    let stop = CancellationToken::new();
    tokio::spawn(listener.serve(Default::default(), RpcPaths::of_service("x.Y", &[]), stop.clone()));
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
    let mut rest = Vec::new();
    while !rest.ends_with(b"\r\n\r\n") {
        rest.push(socket.read_u8().await.unwrap());
    }
    (socket, stop)
}

#[tokio::test(start_paused = true)]
async fn idle_http1_connection_is_kept_for_75_seconds_or_as_set() {
    for (variables, seconds) in [(vec![], 75), (vec![("HTTP1_KEEPALIVE_SECONDS", "600")], 600)] {
        let (mut socket, _stop) = idle_listener(&variables).await;
        let mut byte = [0];
        let early = timeout(Duration::from_secs(seconds - 1), socket.read(&mut byte)).await;
        assert!(early.is_err(), "closed before {seconds} s: {early:?}");
        let late = timeout(Duration::from_secs(2), socket.read(&mut byte)).await;
        assert_eq!(late.expect("it stays open").unwrap(), 0, "{seconds} s");
    }
}

/// A listener with TLS, and a client configuration that trusts it.
pub async fn tls_listener() -> (std::net::SocketAddr, rustls::ClientConfig, CancellationToken) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let files = [file("cert.pem", certificate.pem()), file("key.pem", key.serialize_pem())];
    let variables = [("GRPC_PORT", "0"), ("TLS_CERT_FILE", &files[0]), ("TLS_KEY_FILE", &files[1])];
    let listener = Listener::bind(&config(&variables).server).await.unwrap();
    let address = listener.address();
    let stop = CancellationToken::new();
    tokio::spawn(listener.serve(Default::default(), RpcPaths::of_service("x.Y", &[]), stop.clone()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let client = client.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    (address, client.with_no_client_auth(), stop)
}

#[tokio::test]
async fn tls_client_may_speak_http1_only() {
    let (address, client, _stop) = tls_listener().await;
    for (offered, negotiated) in
        [(&["http/1.1"][..], Some("http/1.1")), (&["http/1.1", "h2"], Some("h2")), (&["h2"], Some("h2")), (&[], None)]
    {
        let mut client = client.clone();
        client.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let socket = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let mut stream = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), negotiated.map(str::as_bytes), "{offered:?}");
        if negotiated == Some("h2") {
            continue;
        }
        let request =
            format!("POST /x.Y/Z HTTP/1.1\r\nhost: localhost\r\ncontent-type: {WEB}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        // A half-close of TLS as well.
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(TEST_TIMEOUT, stream.read_to_end(&mut answer)).await.expect("no answer").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status: 12"), "{offered:?}: {answer}");
    }
}

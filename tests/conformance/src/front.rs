//! An API Gateway emulator: turns HTTP/1.1 requests into Lambda events, and responses back into HTTP/1.1.

use std::convert::Infallible;

use agent_service::transport::lambda::{Adapter, ResponseBody};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::Map};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

type Piece = Result<Bytes, Infallible>;
type Answered = StreamBody<Map<ResponseBody, fn(Piece) -> Result<Frame<Bytes>, Infallible>>>;

/// Serves a socket by a function.
///
/// # Errors
/// The socket fails.
pub async fn serve(adapter: Adapter, socket: TcpListener) -> std::io::Result<()> {
    loop {
        let (connection, _) = socket.accept().await?;
        let adapter = adapter.clone();
        let answering = service_fn(move |request| {
            let adapter = adapter.clone();
            async move { answer(&adapter, request).await }
        });
        // Errors of a connection, such as a disconnect, are ignored.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), answering));
    }
}

async fn answer(adapter: &Adapter, request: Request<Incoming>) -> Result<Response<Answered>, hyper::Error> {
    let event = event(request).await?;
    // Deadlines are those of the client's `grpc-timeout`.
    let response = adapter.handle(event, u64::MAX).await;
    Ok(response.map(|body| StreamBody::new(body.map((|piece| piece.map(Frame::data)) as fn(Piece) -> _))))
}

/// A REST API event, whose headers may have several values.
async fn event(request: Request<Incoming>) -> Result<Value, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let values =
        |name| head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    let headers = head.headers.keys().map(|name| (name.to_string(), values(name))).collect::<Vec<(_, Value)>>();
    Ok(json!({
        "httpMethod": head.method.as_str(),
        "path": head.uri.path(),
        "multiValueHeaders": serde_json::Map::from_iter(headers),
        "body": STANDARD.encode(body),
        "isBase64Encoded": true,
    }))
}

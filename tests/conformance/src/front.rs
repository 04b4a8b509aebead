//! What stands before a function of AWS Lambda: HTTP/1.1 becomes events, and answers become HTTP/1.1.

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

/// Answers by a function what comes to a socket.
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
        // A client that leaves in the middle is no reason to say anything.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), answering));
    }
}

async fn answer(adapter: &Adapter, request: Request<Incoming>) -> Result<Response<Answered>, hyper::Error> {
    let event = event(request).await?;
    // A client of the suite says itself how much time there is.
    let response = adapter.handle(event, u64::MAX).await;
    Ok(response.map(|body| StreamBody::new(body.map((|piece| piece.map(Frame::data)) as fn(Piece) -> _))))
}

/// The event of a REST API, which keeps the values of a header apart.
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

//! A Lambda function that panics before or within its response.

#![forbid(unsafe_code)]

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    process::ExitCode,
    task::{Context, Poll},
};

use agent_service::transport::lambda::{self, Adapter};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

/// A gRPC message with two bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x02hi";

#[derive(Clone)]
struct Panicking;

impl NamedService for Panicking {
    const NAME: &'static str = "test.Panicking";
}

impl Service<Request<Body>> for Panicking {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        assert!(!path.ends_with("AtOnce"), "private");
        Box::pin(async move {
            assert!(path.ends_with("Midway"), "private");
            let mut frames = 0;
            let frames = stream::poll_fn(move |_| {
                assert_eq!(frames, 0, "private");
                frames += 1;
                Poll::Ready(Some(Ok::<_, Status>(Frame::data(Bytes::from_static(MESSAGE)))))
            });
            Ok(Response::new(Body::new(StreamBody::new(frames))))
        })
    }
}

fn main() -> ExitCode {
    lambda::serve(|_| Adapter::new(Panicking, &["AtOnce", "Later", "Midway"]))
}

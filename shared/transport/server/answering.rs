//! Answers some requests in place of the services behind it: the page and the probes.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

pub(super) trait Answer {
    /// `None` passes the request on.
    fn answer(&self, request: &Request<Body>) -> Option<Response<Body>>;
}

#[derive(Debug, Clone)]
pub(super) struct AnswerLayer<A>(pub(super) A);

impl<A: Clone, S> Layer<S> for AnswerLayer<A> {
    type Service = AnswerService<A, S>;

    fn layer(&self, inner: S) -> AnswerService<A, S> {
        AnswerService { answer: self.0.clone(), inner }
    }
}

#[derive(Debug, Clone)]
pub(super) struct AnswerService<A, S> {
    answer: A,
    inner: S,
}

impl<A, S> Service<Request<Body>> for AnswerService<A, S>
where
    A: Answer,
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.answer.answer(&request) {
            Some(response) => Either::Left(ready(Ok(response))),
            None => Either::Right(self.inner.call(request)),
        }
    }
}

//! The methods of the service, as specified in its proto file.

use std::{pin::Pin, time::Duration};

use async_stream::try_stream;
use futures_util::Stream;
use http::HeaderMap;
use prost_types::Any;
use tokio::time::sleep;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    bare, proto,
    proto::{
        BidiStreamRequest, BidiStreamResponse, ClientStreamRequest, ClientStreamResponse, ConformancePayload,
        IdempotentUnaryRequest, IdempotentUnaryResponse, ServerStreamRequest, ServerStreamResponse,
        StreamResponseDefinition, UnaryRequest, UnaryResponse, UnimplementedRequest, UnimplementedResponse,
        conformance_payload::RequestInfo,
    },
    responses::{any, header_map, request_info, response, single, status},
};

#[derive(Clone, Copy)]
pub struct Conformance;

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type CallResult<T> = Result<Response<T>, Status>;

async fn unary(call: Request<UnaryRequest>) -> CallResult<UnaryResponse> {
    let (metadata, _, request) = call.into_parts();
    let info = request_info(metadata, vec![any(&request)]);
    delay(request.response_definition.as_ref().map(|definition| definition.response_delay_ms)).await;
    Ok(single(request.response_definition, info)?.map(|payload| UnaryResponse { payload: Some(payload) }))
}

async fn idempotent_unary(call: Request<IdempotentUnaryRequest>) -> CallResult<IdempotentUnaryResponse> {
    let (metadata, _, request) = call.into_parts();
    let info = request_info(metadata, vec![any(&request)]);
    delay(request.response_definition.as_ref().map(|definition| definition.response_delay_ms)).await;
    Ok(single(request.response_definition, info)?.map(|payload| IdempotentUnaryResponse { payload: Some(payload) }))
}

async fn client_stream(call: Request<Streaming<ClientStreamRequest>>) -> CallResult<ClientStreamResponse> {
    let (metadata, _, mut requests) = call.into_parts();
    let mut received = Vec::new();
    let mut definition = None;
    while let Some(request) = requests.message().await? {
        received.push(any(&request));
        if received.len() == 1 {
            definition = request.response_definition;
        }
    }
    delay(definition.as_ref().map(|definition| definition.response_delay_ms)).await;
    let answer = single(definition, request_info(metadata, received))?;
    Ok(answer.map(|payload| ClientStreamResponse { payload: Some(payload) }))
}

async fn server_stream(call: Request<ServerStreamRequest>) -> CallResult<ResponseStream<ServerStreamResponse>> {
    let (metadata, _, request) = call.into_parts();
    let received = vec![any(&request)];
    let Definition { headers, trailers, mut rest } = Definition::read(request.response_definition)?;
    let stream = try_stream! {
        let mut first = Some((metadata, received));
        while let Some(data) = rest.next().await {
            yield ServerStreamResponse { payload: Some(payload(data, first.take())) };
        }
        rest.end(first)?;
    };
    Ok(response(headers, trailers, Box::pin(stream)))
}

async fn bidi_stream(call: Request<Streaming<BidiStreamRequest>>) -> CallResult<ResponseStream<BidiStreamResponse>> {
    let (metadata, _, mut requests) = call.into_parts();
    let mut received = Vec::new();
    let mut first = (None, false);
    if let Some(request) = requests.message().await? {
        received.push(any(&request));
        first = (request.response_definition, request.full_duplex);
    }
    let (definition, is_full_duplex) = first;
    let Definition { headers, trailers, mut rest } = Definition::read(definition)?;
    if !is_full_duplex {
        // Over HTTP/1.1 a client sends everything before it reads.
        while let Some(request) = requests.message().await? {
            received.push(any(&request));
        }
    }
    let stream = try_stream! {
        let mut metadata = Some(metadata);
        while let Some(data) = rest.next().await {
            // Later responses report only the requests since the last one.
            let news = match metadata.take() {
                Some(metadata) => Some((metadata, std::mem::take(&mut received))),
                None if received.is_empty() => None,
                None => Some((MetadataMap::new(), std::mem::take(&mut received))),
            };
            yield BidiStreamResponse { payload: Some(payload(data, news)) };
            if is_full_duplex {
                received.extend(requests.message().await?.as_ref().map(any));
            }
        }
        rest.end(metadata.map(|metadata| (metadata, received)))?;
    };
    Ok(response(headers, trailers, Box::pin(stream)))
}

fn unimplemented() -> Status {
    Status::unimplemented("this call is not implemented on purpose")
}

/// The requested response stream.
struct Definition {
    headers: HeaderMap,
    trailers: HeaderMap,
    rest: Remaining,
}

struct Remaining {
    data: std::vec::IntoIter<Vec<u8>>,
    delay_ms: u32,
    error: Option<proto::Error>,
}

impl Definition {
    fn read(definition: Option<StreamResponseDefinition>) -> Result<Self, Status> {
        let definition = definition.unwrap_or_default();
        Ok(Self {
            headers: header_map(definition.response_headers)?,
            trailers: header_map(definition.response_trailers)?,
            rest: Remaining {
                data: definition.response_data.into_iter(),
                delay_ms: definition.response_delay_ms,
                error: definition.error,
            },
        })
    }
}

impl Remaining {
    async fn next(&mut self) -> Option<Vec<u8>> {
        let data = self.data.next()?;
        delay(Some(self.delay_ms)).await;
        Some(data)
    }

    /// Ends the stream; an error reports the requests that no message reported.
    fn end(self, untold: Option<(MetadataMap, Vec<Any>)>) -> Result<(), Status> {
        let Some(error) = self.error else { return Ok(()) };
        let info = untold.map(|(metadata, received)| request_info(metadata, received));
        Err(status(error, info.as_ref(), HeaderMap::new()))
    }
}

fn payload(data: Vec<u8>, news: Option<(MetadataMap, Vec<Any>)>) -> ConformancePayload {
    let request_info: Option<RequestInfo> = news.map(|(metadata, received)| request_info(metadata, received));
    ConformancePayload { data, request_info }
}

async fn delay(milliseconds: Option<u32>) {
    if let Some(milliseconds @ 1..) = milliseconds {
        sleep(Duration::from_millis(milliseconds.into())).await;
    }
}

/// Each codec has its own service trait with the same methods.
macro_rules! serve {
    ($generated:ident) => {
        #[tonic::async_trait]
        impl $generated::conformance_service_server::ConformanceService for Conformance {
            type ServerStreamStream = ResponseStream<ServerStreamResponse>;
            type BidiStreamStream = ResponseStream<BidiStreamResponse>;

            async fn unary(&self, call: Request<UnaryRequest>) -> CallResult<UnaryResponse> {
                unary(call).await
            }

            async fn server_stream(&self, call: Request<ServerStreamRequest>) -> CallResult<Self::ServerStreamStream> {
                server_stream(call).await
            }

            async fn client_stream(
                &self,
                call: Request<Streaming<ClientStreamRequest>>,
            ) -> CallResult<ClientStreamResponse> {
                client_stream(call).await
            }

            async fn bidi_stream(
                &self,
                call: Request<Streaming<BidiStreamRequest>>,
            ) -> CallResult<Self::BidiStreamStream> {
                bidi_stream(call).await
            }

            async fn unimplemented(&self, _: Request<UnimplementedRequest>) -> CallResult<UnimplementedResponse> {
                Err(unimplemented())
            }

            async fn idempotent_unary(
                &self,
                call: Request<IdempotentUnaryRequest>,
            ) -> CallResult<IdempotentUnaryResponse> {
                idempotent_unary(call).await
            }
        }
    };
}

serve!(proto);
serve!(bare);

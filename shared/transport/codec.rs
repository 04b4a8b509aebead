//! Protobuf on the wire.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Code, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a stream's buffer begins with, which it holds as long as it is open: a few frames. Tonic's default is 8 KiB.
const BUFFER_BYTES: usize = 2 * 1024;
/// Messages that are ready are sent together up to this size, tonic's default.
const YIELD_BYTES: usize = 32 * 1024;

/// Encodes and decodes with prost. Unlike tonic's own codec it answers bytes that are no message with INVALID_ARGUMENT,
/// because the sender is at fault and not the service.
#[derive(Debug, Clone)]
pub struct ProtobufCodec<Out, In> {
    inner: ProstCodec<Out, In>,
}

impl<Out, In> Default for ProtobufCodec<Out, In> {
    fn default() -> Self {
        Self { inner: ProstCodec::default() }
    }
}

impl<Out, In> Codec for ProtobufCodec<Out, In>
where
    Out: Message + Send + 'static,
    In: Message + Default + Send + 'static,
{
    type Encode = Out;
    type Decode = In;
    type Encoder = ProstEncoder<Out>;
    type Decoder = ProtobufDecoder<In>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Out, In>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProtobufDecoder { inner: self.inner.decoder(), message: PhantomData }
    }
}

/// The decoder of [`ProtobufCodec`].
#[derive(Debug)]
pub struct ProtobufDecoder<In> {
    inner: ProstDecoder<In>,
    message: PhantomData<In>,
}

impl<In> Decoder for ProtobufDecoder<In>
where
    In: Message + Default,
{
    type Item = In;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<In>, Status> {
        // The decoder's only failure is a malformed message. Its text names fields, never values.
        self.inner.decode(bytes).map_err(|error| {
            Status::new(Code::InvalidArgument, format!("the request is not a valid message: {}", error.message()))
        })
    }
}

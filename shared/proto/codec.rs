//! The gRPC codec of all services.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Code, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Buffer of a stream, held while the stream is open: a few frames. Tonic's default is 8 KiB. It is also the least size of the
/// buffers that follow when this one is full, but only from 1 KiB on.
const BUFFER_BYTES: usize = 1024;
/// Ready messages are sent together up to this size, tonic's default.
const YIELD_BYTES: usize = 32 * 1024;

/// A message that can be sent: a prost message, or one that is already encoded.
pub trait EncodeMessage {
    fn encode_message(&self, buffer: &mut EncodeBuf<'_>);
}

impl<M: Message> EncodeMessage for M {
    fn encode_message(&self, buffer: &mut EncodeBuf<'_>) {
        self.encode_raw(buffer);
    }
}

/// Encodes and decodes protobuf. Unlike tonic's own codec it answers bytes that are no message with INVALID_ARGUMENT
/// instead of INTERNAL, because the sender is at fault.
#[derive(Debug, Clone)]
pub struct ProtobufCodec<Out, In>(PhantomData<(Out, In)>);

impl<Out, In> Default for ProtobufCodec<Out, In> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Out, In> Codec for ProtobufCodec<Out, In>
where
    Out: EncodeMessage + Send + 'static,
    In: Message + Default + Send + 'static,
{
    type Encode = Out;
    type Decode = In;
    type Encoder = ProtobufEncoder<Out>;
    type Decoder = ProtobufDecoder<In>;

    fn encoder(&mut self) -> Self::Encoder {
        ProtobufEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProtobufDecoder(PhantomData)
    }
}

/// The encoder of [`ProtobufCodec`].
#[derive(Debug)]
pub struct ProtobufEncoder<Out>(PhantomData<Out>);

impl<Out: EncodeMessage> Encoder for ProtobufEncoder<Out> {
    type Item = Out;
    type Error = Status;

    fn encode(&mut self, message: Out, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode_message(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

/// The decoder of [`ProtobufCodec`].
#[derive(Debug)]
pub struct ProtobufDecoder<In>(PhantomData<In>);

impl<In: Message + Default> Decoder for ProtobufDecoder<In> {
    type Item = In;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<In>, Status> {
        // The text of a decode error names fields, never values.
        let message = In::decode(bytes).map_err(|error| {
            Status::new(Code::InvalidArgument, format!("the request is not a valid message: {error}"))
        })?;
        Ok(Some(message))
    }
}

//! The encoder: BERT and the relatives that compute the same under other names.
//!
//! It is written here rather than taken from `candle-transformers`, whose encoders are one type each and whose hundred
//! other models would be compiled with them.

use std::{collections::HashMap, iter::repeat_n, path::Path};

use candle_core::{DType, Device, Tensor};

use super::{
    directory::{EncoderFamily, EncoderShape, LocalModelError, ModelDirectory, malformed},
    ops::{Activation, Add, LayerNorm, Softmax},
};

/// Names of the tensors of a layer.
struct Names {
    layers: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    attended: &'static str,
    attention_norm: &'static str,
    widen: &'static str,
    narrow: &'static str,
    norm: &'static str,
}

const BERT: Names = Names {
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attended: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    widen: "intermediate.dense",
    narrow: "output.dense",
    norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attended: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    widen: "ffn.lin1",
    narrow: "ffn.lin2",
    norm: "output_layer_norm",
};

/// Gives every token of a text a vector that depends on the whole text.
#[derive(Debug)]
pub(super) struct BertEncoder {
    words: Tensor,
    /// Embeddings of the positions that texts use, each with that of the only token type in use added.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    activation: Activation,
}

#[derive(Debug)]
struct Layer {
    /// Query, key and value as one matrix, because one large product is faster than three.
    attention: Linear,
    attended: Linear,
    attention_norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl BertEncoder {
    /// An encoder of the weights in `content`, which is what the file at `path` holds.
    pub(super) fn new(directory: &ModelDirectory, path: &Path, content: &[u8]) -> Result<Self, LocalModelError> {
        let mut weights = Weights::parse(path, content)?;
        let EncoderShape { hidden_size: hidden, intermediate_size: wide, .. } = directory.shape;
        let names = if directory.family == EncoderFamily::DistilBert { &DISTILBERT } else { &BERT };
        let words = weights.take("embeddings.word_embeddings.weight", &[directory.shape.vocab_size, hidden])?;
        let positions = weights.positions(directory)?;
        let norm = weights.norm("embeddings.LayerNorm", directory)?;
        let heads = directory.shape.num_attention_heads;
        let mut layers = Vec::new();
        for layer in 0..directory.shape.num_hidden_layers {
            let mut linear = |name: &str, outputs, inputs| {
                weights.linear(&format!("{}.{layer}.{name}", names.layers), outputs, inputs)
            };
            let query = linear(names.query, hidden, hidden)?;
            let key = linear(names.key, hidden, hidden)?;
            let value = linear(names.value, hidden, hidden)?;
            let attended = linear(names.attended, hidden, hidden)?;
            let widen = linear(names.widen, wide, hidden)?;
            let narrow = linear(names.narrow, hidden, wide)?;
            let mut norm = |name: &str| weights.norm(&format!("{}.{layer}.{name}", names.layers), directory);
            layers.push(Layer {
                attention: stacked(query, key, value, hidden / heads).map_err(|error| malformed(path, error))?,
                attended,
                attention_norm: norm(names.attention_norm)?,
                widen,
                narrow,
                norm: norm(names.norm)?,
            });
        }
        Ok(Self { words, positions, norm, layers, heads, activation: directory.activation })
    }

    /// The vectors of all tokens of `texts`, text after text, each text as long as the longest, which is `width`.
    /// What stands behind the end of a shorter text is without meaning.
    pub(super) fn forward(&self, texts: &[&[u32]], width: usize) -> candle_core::Result<Vec<f32>> {
        let ids = texts.iter().flat_map(|ids| ids.iter().copied().chain(repeat_n(0, width - ids.len())));
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        let mut state = self.words.index_select(&Tensor::from_iter(ids, &Device::Cpu)?, 0)?;
        state.inplace_op2(&self.positions.narrow(0, 0, width)?, &Add)?;
        state.inplace_op1(&self.norm)?;
        for layer in &self.layers {
            let attended = layer.attend(&state, &lengths, (width, self.heads))?;
            attended.inplace_op2(&state, &Add)?;
            attended.inplace_op1(&layer.attention_norm)?;
            let wide = layer.widen.forward(&attended)?;
            wide.inplace_op1(&self.activation)?;
            state = layer.narrow.forward(&wide)?;
            state.inplace_op2(&attended, &Add)?;
            state.inplace_op1(&layer.norm)?;
        }
        state.flatten_all()?.to_vec1()
    }
}

impl Layer {
    fn attend(&self, state: &Tensor, lengths: &[usize], (width, heads): (usize, usize)) -> candle_core::Result<Tensor> {
        let all = self.attention.forward(state)?.reshape((lengths.len(), width, 3, heads, ()))?;
        let all = all.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (query, key, value) = (all.get(0)?, all.get(1)?, all.get(2)?);
        let scores = query.matmul(&key.t()?)?;
        scores.inplace_op1(&Softmax { lengths, width })?;
        let context = scores.matmul(&value)?.transpose(1, 2)?;
        self.attended.forward(&context.reshape((lengths.len() * width, ()))?)
    }
}

impl Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let product = x.matmul(&self.weight.t()?)?;
        product.inplace_op2(&self.bias, &Add)?;
        Ok(product)
    }
}

/// One layer that gives query, key and value, the query divided by the root of the heads' `size` beforehand.
fn stacked(query: Linear, key: Linear, value: Linear, size: usize) -> candle_core::Result<Linear> {
    let scale = (size as f64).sqrt().recip();
    Ok(Linear {
        weight: Tensor::cat(&[(query.weight * scale)?, key.weight, value.weight], 0)?,
        bias: Tensor::cat(&[(query.bias * scale)?, key.bias, value.bias], 0)?,
    })
}

/// The tensors of a file that were not taken yet.
struct Weights<'a> {
    path: &'a Path,
    tensors: HashMap<String, Tensor>,
    /// What stands before every name, for example `bert.`, where the encoder was saved as part of a larger model.
    prefix: String,
}

impl<'a> Weights<'a> {
    fn parse(path: &'a Path, content: &[u8]) -> Result<Self, LocalModelError> {
        let tensors =
            candle_core::safetensors::load_buffer(content, &Device::Cpu).map_err(|error| malformed(path, error))?;
        let words = "embeddings.word_embeddings.weight";
        let prefixes = tensors.keys().filter_map(|name| name.strip_suffix(words));
        let prefix = prefixes.min_by_key(|prefix| prefix.len()).unwrap_or_default().to_owned();
        Ok(Self { path, tensors, prefix })
    }

    fn find(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(&format!("{}{name}", self.prefix))
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LocalModelError> {
        let tensor = self.find(name).ok_or_else(|| malformed(self.path, format!("it has no tensor {name}")))?;
        self.checked(tensor, name, shape)
    }

    fn checked(&self, tensor: Tensor, name: &str, shape: &[usize]) -> Result<Tensor, LocalModelError> {
        if tensor.dims() != shape {
            let found = tensor.dims();
            return Err(malformed(
                self.path,
                format!("{name} has the shape {found:?}; config.json makes it {shape:?}"),
            ));
        }
        tensor.to_dtype(DType::F32).map_err(|error| malformed(self.path, error))
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, LocalModelError> {
        Ok(Linear {
            weight: self.take(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: self.take(&format!("{name}.bias"), &[outputs])?,
        })
    }

    /// A layer normalisation, which conversions of TensorFlow's checkpoints name `gamma` and `beta`.
    fn norm(&mut self, name: &str, directory: &ModelDirectory) -> Result<LayerNorm, LocalModelError> {
        let EncoderShape { hidden_size, layer_norm_eps, .. } = directory.shape;
        let mut either = |new: &str, old: &str| match self.find(&format!("{name}.{old}")) {
            Some(tensor) => self.checked(tensor, old, &[hidden_size]),
            None => self.take(&format!("{name}.{new}"), &[hidden_size]),
        };
        let (weight, bias) = (either("weight", "gamma")?, either("bias", "beta")?);
        let numbers = |tensor: Tensor| tensor.to_vec1().map_err(|error| malformed(self.path, error));
        Ok(LayerNorm { weight: numbers(weight)?, bias: numbers(bias)?, eps: layer_norm_eps as f32 })
    }

    fn positions(&mut self, directory: &ModelDirectory) -> Result<Tensor, LocalModelError> {
        let EncoderShape { hidden_size, max_position_embeddings, type_vocab_size, .. } = directory.shape;
        let all = self.take("embeddings.position_embeddings.weight", &[max_position_embeddings, hidden_size])?;
        // DistilBERT has no token types, and some exports leave out those that are never used.
        let token_type = match self.find("embeddings.token_type_embeddings.weight") {
            Some(types) => Some(self.checked(types, "token_type_embeddings", &[type_vocab_size, hidden_size])?),
            None => None,
        };
        let sum = || {
            let used = all.narrow(0, directory.first_position, directory.longest)?;
            match token_type {
                Some(types) => used.broadcast_add(&types.narrow(0, 0, 1)?),
                None => used.contiguous(),
            }
        };
        sum().map_err(|error| malformed(self.path, error))
    }
}

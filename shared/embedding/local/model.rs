//! The encoder: BERT, and relatives with other tensor names. The texts of a batch follow each other without padding;
//! only attention looks at where a text ends.

use std::{collections::HashMap, path::Path};

use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, linalg::general_mat_mul, s};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    directory::{EncoderFamily, EncoderShape, ModelDirectory},
    files::{LocalModelError, malformed},
    ops::{Activation, LayerNorm, softmax},
};

struct TensorNames {
    layers: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    attention_output: &'static str,
    attention_norm: &'static str,
    widen: &'static str,
    narrow: &'static str,
    norm: &'static str,
}

const BERT: TensorNames = TensorNames {
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    widen: "intermediate.dense",
    narrow: "output.dense",
    norm: "output.LayerNorm",
};

const DISTILBERT: TensorNames = TensorNames {
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    widen: "ffn.lin1",
    narrow: "ffn.lin2",
    norm: "output_layer_norm",
};

#[derive(Debug)]
pub(super) struct BertEncoder {
    words: Array2<f32>,
    /// The first token type's embedding is added to each.
    positions: Array2<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    activation: Activation,
}

#[derive(Debug)]
struct Layer {
    /// Query, key and value stacked, so that one product computes all three.
    attention: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Linear {
    /// `[outputs, inputs]`.
    weight: Array2<f32>,
    bias: Array1<f32>,
}

impl BertEncoder {
    pub(super) fn new(directory: &ModelDirectory, path: &Path, content: &[u8]) -> Result<Self, LocalModelError> {
        let mut weights = Weights::parse(path, content)?;
        let EncoderShape { hidden_size: hidden, intermediate_size: wide, .. } = directory.shape;
        let names = if directory.family == EncoderFamily::DistilBert { &DISTILBERT } else { &BERT };
        let words = weights.matrix("embeddings.word_embeddings.weight", [directory.shape.vocab_size, hidden])?;
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
            let attention_output = linear(names.attention_output, hidden, hidden)?;
            let widen = linear(names.widen, wide, hidden)?;
            let narrow = linear(names.narrow, hidden, wide)?;
            let mut norm = |name: &str| weights.norm(&format!("{}.{layer}.{name}", names.layers), directory);
            layers.push(Layer {
                attention: stack(query, &key, &value, hidden / heads).map_err(|error| malformed(path, error))?,
                attention_output,
                attention_norm: norm(names.attention_norm)?,
                widen,
                narrow,
                norm: norm(names.norm)?,
            });
        }
        Ok(Self { words, positions, norm, layers, heads, activation: directory.activation })
    }

    /// One row a token, the texts one behind the other. Fails if a token is outside the vocabulary, or a text has more
    /// tokens than there are positions.
    pub(super) fn forward(&self, texts: &[&[u32]]) -> Result<Vec<f32>, String> {
        let mut state = self.embed(texts)?;
        self.norm.apply(&mut state);
        for layer in &self.layers {
            let mut attended = layer.attend(&state, texts, self.heads);
            attended += &state;
            layer.attention_norm.apply(&mut attended);
            let mut wide = layer.widen.forward(attended.view());
            self.activation.apply(&mut wide);
            state = layer.narrow.forward(wide.view());
            state += &attended;
            layer.norm.apply(&mut state);
        }
        Ok(state.into_iter().collect())
    }

    fn embed(&self, texts: &[&[u32]]) -> Result<Array2<f32>, String> {
        let tokens = texts.iter().map(|ids| ids.len()).sum();
        let mut state = Array2::zeros((tokens, self.words.ncols()));
        let places = texts.iter().flat_map(|ids| ids.iter().enumerate());
        for (mut row, (position, id)) in state.rows_mut().into_iter().zip(places) {
            if position >= self.positions.nrows() || *id as usize >= self.words.nrows() {
                return Err(format!("token {id} at position {position} is outside the model's vocabulary or length"));
            }
            row.assign(&self.words.row(*id as usize));
            row += &self.positions.row(position);
        }
        Ok(state)
    }
}

impl Layer {
    fn attend(&self, state: &Array2<f32>, texts: &[&[u32]], heads: usize) -> Array2<f32> {
        let hidden = state.ncols();
        let size = hidden / heads;
        let all = self.attention.forward(state.view());
        let mut context = Array2::zeros((state.nrows(), hidden));
        let mut begin = 0;
        for ids in texts {
            let rows = begin..begin + ids.len();
            begin = rows.end;
            for head in 0..heads {
                let part = |block: usize| {
                    let first = block * hidden + head * size;
                    all.slice(s![rows.clone(), first..first + size])
                };
                let mut scores = part(0).dot(&part(1).t());
                softmax(&mut scores);
                let mut context = context.slice_mut(s![rows.clone(), head * size..(head + 1) * size]);
                general_mat_mul(1.0, &scores, &part(2), 0.0, &mut context);
            }
        }
        self.attention_output.forward(context.view())
    }
}

impl Linear {
    fn forward(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        x.dot(&self.weight.t()) + &self.bias
    }
}

/// The scale of the scores, 1/√`size`, becomes part of the query's.
fn stack(query: Linear, key: &Linear, value: &Linear, size: usize) -> Result<Linear, ndarray::ShapeError> {
    let scale = (size as f32).sqrt().recip();
    let (weight, bias) = (query.weight * scale, query.bias * scale);
    Ok(Linear {
        weight: concatenate(Axis(0), &[weight.view(), key.weight.view(), value.weight.view()])?,
        bias: concatenate(Axis(0), &[bias.view(), key.bias.view(), value.bias.view()])?,
    })
}

/// Tensors that have not been taken yet.
struct Weights<'a> {
    path: &'a Path,
    tensors: HashMap<String, TensorView<'a>>,
    /// `bert.` where the encoder was part of a larger model.
    prefix: String,
}

impl<'a> Weights<'a> {
    fn parse(path: &'a Path, content: &'a [u8]) -> Result<Self, LocalModelError> {
        let parsed = SafeTensors::deserialize(content).map_err(|error| malformed(path, error))?;
        let tensors: HashMap<_, _> = parsed.tensors().into_iter().collect();
        let words = "embeddings.word_embeddings.weight";
        let prefixes = tensors.keys().filter_map(|name| name.strip_suffix(words));
        let prefix = prefixes.min_by_key(|prefix| prefix.len()).unwrap_or_default().to_owned();
        Ok(Self { path, tensors, prefix })
    }

    fn find(&mut self, name: &str) -> Option<TensorView<'a>> {
        self.tensors.remove(&format!("{}{name}", self.prefix))
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LocalModelError> {
        let tensor = self.find(name).ok_or_else(|| malformed(self.path, format!("it has no tensor {name}")))?;
        self.numbers(&tensor, name, shape)
    }

    fn numbers(&self, tensor: &TensorView<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, LocalModelError> {
        let found = tensor.shape();
        if found != shape {
            let problem = format!("{name} has the shape {found:?}; config.json makes it {shape:?}");
            return Err(malformed(self.path, problem));
        }
        // Numbers in safetensors are little-endian.
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => Ok(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            Dtype::F16 => Ok(data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()),
            Dtype::BF16 => Ok(data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()),
            #[expect(clippy::cast_possible_truncation, reason = "the encoder computes in f32")]
            Dtype::F64 => Ok(data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32).collect()),
            other => Err(malformed(self.path, format!("{name} holds {other:?}; supported are F64, F32, F16 and BF16"))),
        }
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Array2<f32>, LocalModelError> {
        let numbers = self.take(name, &shape)?;
        Array2::from_shape_vec(shape, numbers).map_err(|error| malformed(self.path, error))
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, LocalModelError> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), [outputs, inputs])?,
            bias: self.take(&format!("{name}.bias"), &[outputs])?.into(),
        })
    }

    fn norm(&mut self, name: &str, directory: &ModelDirectory) -> Result<LayerNorm, LocalModelError> {
        let EncoderShape { hidden_size, layer_norm_eps, .. } = directory.shape;
        // Old exports call weight and bias gamma and beta.
        let mut either = |new: &str, old: &str| match self.find(&format!("{name}.{old}")) {
            Some(tensor) => self.numbers(&tensor, old, &[hidden_size]),
            None => self.take(&format!("{name}.{new}"), &[hidden_size]),
        };
        let (weight, bias) = (either("weight", "gamma")?, either("bias", "beta")?);
        #[expect(clippy::cast_possible_truncation, reason = "1e-12 is as small as f32 needs it")]
        Ok(LayerNorm { weight, bias, eps: layer_norm_eps as f32 })
    }

    fn positions(&mut self, directory: &ModelDirectory) -> Result<Array2<f32>, LocalModelError> {
        let EncoderShape { hidden_size, max_position_embeddings, type_vocab_size, .. } = directory.shape;
        let all = self.matrix("embeddings.position_embeddings.weight", [max_position_embeddings, hidden_size])?;
        let used = directory.first_position..directory.first_position + directory.max_tokens;
        let mut positions = all.slice(s![used, ..]).to_owned();
        // DistilBERT has no token types, and some exports leave out those that are never used.
        let token_types = "embeddings.token_type_embeddings.weight";
        if let Some(types) = self.find(token_types) {
            let types = self.numbers(&types, token_types, &[type_vocab_size, hidden_size])?;
            let first = types.get(..hidden_size).ok_or_else(|| malformed(self.path, "type_vocab_size is 0"))?;
            positions +=
                &ArrayView2::from_shape((1, hidden_size), first).map_err(|error| malformed(self.path, error))?;
        }
        Ok(positions)
    }
}

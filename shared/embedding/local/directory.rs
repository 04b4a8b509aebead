//! Reading a sentence-transformers directory: which files it holds, and what they say about the model.
//!
//! The layout is that of `SentenceTransformer.save_pretrained`, of releases before 6 as well as after: the two name the
//! pooling and the longest input differently.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{ops::Activation, pooling::Pooling};

/// The `model_type`s that are implemented.
const FAMILIES: &str = "bert, roberta, xlm-roberta, camembert and distilbert";

/// Why a directory can not be used as a model. It is for whoever set the directory.
#[derive(Debug, thiserror::Error)]
pub enum LocalModelError {
    /// A file can not be read, or is not there.
    #[error("{path} can not be read: {source}; {expected}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is there and does not hold what it should.
    #[error("{path} can not be used: {problem}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The model needs something that is not implemented here.
    #[error("{path} asks for {asked}; supported are {supported}", path = .path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What it asks for.
        asked: String,
        /// What could be used instead.
        supported: &'static str,
    },
}

/// The kinds of encoder that differ in names of tensors or numbering of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EncoderFamily {
    Bert,
    Roberta,
    DistilBert,
}

/// The shape of an encoder. DistilBERT names some of it differently.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct EncoderShape {
    pub(super) vocab_size: usize,
    #[serde(alias = "dim")]
    pub(super) hidden_size: usize,
    #[serde(alias = "n_layers")]
    pub(super) num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    pub(super) num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    pub(super) intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: String,
    pub(super) max_position_embeddings: usize,
    #[serde(default)]
    pub(super) type_vocab_size: usize,
    #[serde(default = "default_eps")]
    pub(super) layer_norm_eps: f64,
    #[serde(default)]
    pad_token_id: Option<usize>,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

/// The original BERT's, which DistilBERT's configuration leaves out.
const fn default_eps() -> f64 {
    1e-12
}

/// Everything about a model but its weights and its tokenizer.
#[derive(Debug)]
pub(super) struct ModelDirectory {
    pub(super) family: EncoderFamily,
    pub(super) model_type: String,
    pub(super) shape: EncoderShape,
    pub(super) activation: Activation,
    /// Number of the first position: RoBERTa's begin behind that of its padding.
    pub(super) first_position: usize,
    /// Tokens of the longest input, special ones included.
    pub(super) max_tokens: usize,
    /// Some models want lower case that their tokenizer does not make.
    pub(super) lower_case: bool,
    pub(super) pooling: Pooling,
    pub(super) config: PathBuf,
    pub(super) weights: PathBuf,
    pub(super) tokenizer: PathBuf,
}

/// One line of `modules.json`: the steps from text to vector.
#[derive(Deserialize)]
struct Step {
    path: PathBuf,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Deserialize, Default)]
struct SentenceConfig {
    #[serde(default)]
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    /// A float, because "no limit" is written as 10^30.
    #[serde(default)]
    model_max_length: Option<f64>,
}

impl ModelDirectory {
    pub(super) fn read(dir: &Path) -> Result<Self, LocalModelError> {
        let (encoder, pooling) = Self::steps(dir)?;
        let config = encoder.join("config.json");
        let (model_type, family, shape) = read_shape(&config)?;
        let activation = match shape.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => return Err(unsupported(&config, format!("the activation {other}"), "gelu, gelu_new and relu")),
        };
        let first_position = match family {
            EncoderFamily::Roberta => shape.pad_token_id.unwrap_or(1) + 1,
            EncoderFamily::Bert | EncoderFamily::DistilBert => 0,
        };
        let sentence: SentenceConfig = read_if_there(&encoder.join("sentence_bert_config.json"))?.unwrap_or_default();
        let max_tokens = match sentence.max_seq_length {
            Some(length) => length,
            None => {
                let tokenizer: TokenizerConfig =
                    read_if_there(&encoder.join("tokenizer_config.json"))?.unwrap_or_default();
                tokenizer.model_max_length.map_or(usize::MAX, |length| length as usize)
            }
        };
        let pooling = Pooling::read(&pooling)?;
        Ok(Self {
            family,
            model_type,
            activation,
            first_position,
            max_tokens: max_tokens.min(shape.max_position_embeddings.saturating_sub(first_position)),
            lower_case: sentence.do_lower_case,
            pooling,
            weights: encoder.join("model.safetensors"),
            tokenizer: encoder.join("tokenizer.json"),
            config,
            shape,
        })
    }

    /// Where the encoder and the configuration of its pooling are.
    fn steps(dir: &Path) -> Result<(PathBuf, PathBuf), LocalModelError> {
        let modules = dir.join("modules.json");
        let Some(steps) = read_if_there::<Vec<Step>>(&modules)? else {
            // A plain transformers directory, or a hand-made one.
            return Ok((dir.to_owned(), dir.join("1_Pooling").join("config.json")));
        };
        let (mut encoder, mut pooling) = (None, None);
        for step in &steps {
            let class = step.class.rsplit('.').next().unwrap_or_default();
            match class {
                "Transformer" => encoder = Some(dir.join(&step.path)),
                "Pooling" => pooling = Some(dir.join(&step.path).join("config.json")),
                // Vectors have length 1 with it and without.
                "Normalize" => {}
                _ => {
                    let asked = format!("the module {class}");
                    return Err(unsupported(&modules, asked, "Transformer, Pooling and Normalize"));
                }
            }
        }
        encoder.zip(pooling).ok_or_else(|| LocalModelError::Malformed {
            path: modules,
            problem: "it names no Transformer, or no Pooling".to_owned(),
        })
    }
}

fn read_shape(config: &Path) -> Result<(String, EncoderFamily, EncoderShape), LocalModelError> {
    let expected = "the directory should hold what SentenceTransformer.save_pretrained writes, with config.json, \
                    model.safetensors, tokenizer.json and 1_Pooling/config.json";
    let value: Value = parse(config, &read(config, expected)?)?;
    let model_type = value.get("model_type").and_then(Value::as_str).unwrap_or("no model_type").to_owned();
    let family = match model_type.as_str() {
        "bert" => EncoderFamily::Bert,
        "roberta" | "xlm-roberta" | "camembert" => EncoderFamily::Roberta,
        "distilbert" => EncoderFamily::DistilBert,
        other => return Err(unsupported(config, format!("the model_type {other}"), FAMILIES)),
    };
    let shape: EncoderShape = serde_json::from_value(value).map_err(|error| malformed(config, error))?;
    if let Some(kind) = shape.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(unsupported(config, format!("{kind} position embeddings"), "absolute ones"));
    }
    let heads = shape.num_attention_heads;
    if heads == 0 || !shape.hidden_size.is_multiple_of(heads) || shape.hidden_size == 0 {
        let hidden = shape.hidden_size;
        return Err(malformed(config, format!("hidden_size {hidden} can not be shared among {heads} attention heads")));
    }
    Ok((model_type, family, shape))
}

/// Reads a file that must be there.
pub(super) fn read(path: &Path, expected: &'static str) -> Result<Vec<u8>, LocalModelError> {
    std::fs::read(path).map_err(|source| LocalModelError::Unreadable { path: path.to_owned(), expected, source })
}

/// Reads a file that some models go without.
pub(super) fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LocalModelError> {
    match std::fs::read(path) {
        Ok(content) => parse(path, &content).map(Some),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            let expected = "it should be a file that this process may read";
            Err(LocalModelError::Unreadable { path: path.to_owned(), expected, source })
        }
    }
}

fn parse<T: DeserializeOwned>(path: &Path, content: &[u8]) -> Result<T, LocalModelError> {
    serde_json::from_slice(content).map_err(|error| malformed(path, error))
}

pub(super) fn malformed(path: &Path, problem: impl ToString) -> LocalModelError {
    LocalModelError::Malformed { path: path.to_owned(), problem: problem.to_string() }
}

pub(super) fn unsupported(path: &Path, asked: String, supported: &'static str) -> LocalModelError {
    LocalModelError::Unsupported { path: path.to_owned(), asked, supported }
}

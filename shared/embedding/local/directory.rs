//! Reads a directory of `SentenceTransformer.save_pretrained`. Releases before and since 6 name the pooling and the
//! longest input differently.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{
    files::{LocalModelError, malformed, parse, read, read_optional, unsupported},
    ops::Activation,
    pooling::Pooling,
};

const FAMILIES: &str = "bert, roberta, xlm-roberta, camembert and distilbert";

/// They differ in the names of tensors or the numbering of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EncoderFamily {
    Bert,
    Roberta,
    DistilBert,
}

/// From `config.json`. The aliases are those of DistilBERT.
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
    #[serde(default = "default_layer_norm_eps")]
    pub(super) layer_norm_eps: f64,
    #[serde(default)]
    pad_token_id: Option<usize>,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

/// That of BERT, which the configuration of DistilBERT omits.
const fn default_layer_norm_eps() -> f64 {
    1e-12
}

#[derive(Debug)]
pub(super) struct ModelDirectory {
    pub(super) family: EncoderFamily,
    pub(super) model_type: String,
    pub(super) shape: EncoderShape,
    pub(super) activation: Activation,
    /// Positions of RoBERTa begin after that of its padding.
    pub(super) first_position: usize,
    /// Special tokens included.
    pub(super) max_tokens: usize,
    /// Some models expect lower case that their tokenizer does not produce.
    pub(super) is_lower_case: bool,
    pub(super) pooling: Pooling,
    pub(super) config: PathBuf,
    pub(super) weights: PathBuf,
    pub(super) tokenizer: PathBuf,
}

#[derive(Deserialize)]
struct ModuleEntry {
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
    /// A float, because "no limit" is 10^30.
    #[serde(default)]
    model_max_length: Option<f64>,
}

impl ModelDirectory {
    pub(super) fn read(dir: &Path) -> Result<Self, LocalModelError> {
        let (encoder, pooling) = Self::module_paths(dir)?;
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
        let positions = shape.max_position_embeddings;
        if positions <= first_position {
            return Err(malformed(&config, format!("max_position_embeddings {positions} leaves no position for text")));
        }
        let sentence: SentenceConfig = read_optional(&encoder.join("sentence_bert_config.json"))?.unwrap_or_default();
        let max_tokens = match sentence.max_seq_length {
            Some(length) => length,
            None => {
                let tokenizer: TokenizerConfig =
                    read_optional(&encoder.join("tokenizer_config.json"))?.unwrap_or_default();
                tokenizer.model_max_length.map_or(usize::MAX, |length| length as usize)
            }
        };
        let pooling = Pooling::read(&pooling)?;
        Ok(Self {
            family,
            model_type,
            activation,
            first_position,
            max_tokens: max_tokens.min(positions - first_position),
            is_lower_case: sentence.do_lower_case,
            pooling,
            weights: encoder.join("model.safetensors"),
            tokenizer: encoder.join("tokenizer.json"),
            config,
            shape,
        })
    }

    /// The directory of the encoder, and the path of the pooling configuration.
    fn module_paths(dir: &Path) -> Result<(PathBuf, PathBuf), LocalModelError> {
        let modules = dir.join("modules.json");
        let Some(entries) = read_optional::<Vec<ModuleEntry>>(&modules)? else {
            // A plain transformers directory.
            return Ok((dir.to_owned(), dir.join("1_Pooling").join("config.json")));
        };
        let (mut encoder, mut pooling) = (None, None);
        for entry in &entries {
            let class = entry.class.rsplit('.').next().unwrap_or_default();
            match class {
                "Transformer" => encoder = Some(dir.join(&entry.path)),
                "Pooling" => pooling = Some(dir.join(&entry.path).join("config.json")),
                "Normalize" => {}
                _ => {
                    let required = format!("the module {class}");
                    return Err(unsupported(&modules, required, "Transformer, Pooling and Normalize"));
                }
            }
        }
        encoder.zip(pooling).ok_or_else(|| LocalModelError::Malformed {
            path: modules,
            problem: "it has no Transformer or no Pooling module".to_owned(),
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
        return Err(malformed(config, format!("hidden_size {hidden} is not a multiple of {heads} attention heads")));
    }
    Ok((model_type, family, shape))
}

use std::{collections::HashMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const HIDDEN: usize = 8;
const WIDE: usize = 16;
const POSITIONS: usize = 12;
const WORDS: [&str; 7] = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "green", "blue"];

fn model(prefix: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "config.json", &config());
    write(dir.path(), "tokenizer.json", &tokenizer_json());
    write(dir.path(), "1_Pooling/config.json", &json!({"pooling_mode_mean_tokens": true}));
    save(&weights(prefix, 0.0), &dir.path().join("model.safetensors"));
    dir
}

fn config() -> Value {
    json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": WIDE, "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    })
}

/// With padding and truncation, which must be ignored.
fn tokenizer_json() -> Value {
    let vocab: HashMap<_, _> = WORDS.iter().zip(0..).collect();
    let special = |token: &str, id: usize| json!({"id": token, "ids": [id], "tokens": [token]});
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 10}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "special_tokens": {"[CLS]": special("[CLS]", 1), "[SEP]": special("[SEP]", 2)}},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab},
    })
}

fn weights(prefix: &str, shift: f32) -> HashMap<String, (Vec<usize>, Vec<u8>)> {
    let layer = |name: &str| format!("encoder.layer.0.{name}");
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), HIDDEN]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, HIDDEN]),
        ("embeddings.LayerNorm.gamma".to_owned(), vec![HIDDEN]),
        ("embeddings.LayerNorm.beta".to_owned(), vec![HIDDEN]),
    ];
    for (name, outputs, inputs) in [
        ("attention.self.query", HIDDEN, HIDDEN),
        ("attention.self.key", HIDDEN, HIDDEN),
        ("attention.self.value", HIDDEN, HIDDEN),
        ("attention.output.dense", HIDDEN, HIDDEN),
        ("intermediate.dense", WIDE, HIDDEN),
        ("output.dense", HIDDEN, WIDE),
    ] {
        shapes.push((layer(&format!("{name}.weight")), vec![outputs, inputs]));
        shapes.push((layer(&format!("{name}.bias")), vec![outputs]));
    }
    for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
        shapes.push((layer(&format!("{norm}.weight")), vec![HIDDEN]));
        shapes.push((layer(&format!("{norm}.bias")), vec![HIDDEN]));
    }
    let tensor = |number: usize, shape: Vec<usize>| {
        let count = shape.iter().product::<usize>();
        let numbers = (0..count).map(|at| ((at * 7 + number * 13 + 1) as f32 + shift).sin());
        (shape, numbers.flat_map(f32::to_le_bytes).collect())
    };
    let numbered = shapes.into_iter().enumerate();
    numbered.map(|(number, (name, shape))| (format!("{prefix}{name}"), tensor(number, shape))).collect()
}

fn save(tensors: &HashMap<String, (Vec<usize>, Vec<u8>)>, path: &Path) {
    let views =
        tensors.iter().map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn write(dir: &Path, name: &str, content: &Value) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content.to_string()).unwrap();
}

fn load_error(corrupt: impl FnOnce(&Path)) -> String {
    let dir = model("");
    corrupt(dir.path());
    LocalEmbedder::load(dir.path()).unwrap_err().to_string()
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5)
}

#[tokio::test]
async fn vector_is_the_same_alone_and_in_a_batch() {
    let embedder = LocalEmbedder::load(model("").path()).unwrap();
    let mut texts = vec!["red green blue red green", "", "blue", "red green", "a word it does not know"];
    texts.extend(["green blue red"; 100]);
    let together = embedder.embed(&texts).await.unwrap();
    for (text, vector) in texts.iter().zip(&together) {
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5, "{text}");
        let alone = embedder.embed(&[text]).await.unwrap();
        assert!(near(&alone[0], vector), "{text}");
    }
    assert!(!near(&together[2], &together[3]));
    assert!(embedder.embed(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn text_is_truncated_at_the_limit_of_the_directory() {
    let dir = model("");
    write(dir.path(), "sentence_bert_config.json", &json!({"max_seq_length": 6}));
    let embedder = LocalEmbedder::load(dir.path()).unwrap();
    let texts = ["red green blue red", "red green blue red blue blue", "red green blue"];
    let vectors = embedder.embed(&texts).await.unwrap();
    assert!(near(&vectors[0], &vectors[1]));
    assert!(!near(&vectors[0], &vectors[2]));
}

#[tokio::test]
async fn text_without_limit_is_truncated_at_the_last_position() {
    let dir = model("");
    write(dir.path(), "tokenizer_config.json", &json!({"model_max_length": 1e30}));
    let embedder = LocalEmbedder::load(dir.path()).unwrap();
    let vectors = embedder.embed(&["red ".repeat(10).as_str(), "red ".repeat(1000).as_str()]).await.unwrap();
    assert!(near(&vectors[0], &vectors[1]));
}

#[tokio::test]
async fn encoder_within_a_larger_model_is_found() {
    let (plain, part) = (LocalEmbedder::load(model("").path()), LocalEmbedder::load(model("bert.").path()));
    let vector = async |embedder: &LocalEmbedder| embedder.embed(&["red green"]).await.unwrap().remove(0);
    assert!(near(&vector(&plain.unwrap()).await, &vector(&part.unwrap()).await));
}

#[test]
fn model_name_depends_on_weights_and_not_on_path() {
    let (one, same, other) = (model(""), model(""), model(""));
    save(&weights("", 1.0), &other.path().join("model.safetensors"));
    let name = |dir: &TempDir| LocalEmbedder::load(dir.path()).unwrap().model().name.clone();
    assert!(name(&one).starts_with("bert-1x8-mean-"), "{}", name(&one));
    assert_eq!(name(&one), name(&same));
    assert_ne!(name(&one), name(&other));
}

#[test]
fn missing_file_is_named() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let error = load_error(|dir| fs::remove_file(dir.join(file)).unwrap());
        assert!(error.contains(file) && error.contains("save_pretrained"), "{error}");
    }
}

#[test]
fn unsupported_setting_is_named_with_alternatives() {
    let changed = |key: &str, value: &str| {
        let mut config = config();
        config[key] = json!(value);
        load_error(|dir| write(dir, "config.json", &config))
    };
    let error = changed("model_type", "mpnet");
    assert!(error.contains("the model_type mpnet; supported are bert, roberta"), "{error}");
    let error = changed("hidden_act", "silu");
    assert!(error.contains("the activation silu"), "{error}");
    let error = changed("position_embedding_type", "alibi");
    assert!(error.contains("alibi position embeddings"), "{error}");
    let modules = json!([{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]);
    let error = load_error(|dir| write(dir, "modules.json", &modules));
    assert!(error.contains("the module Dense"), "{error}");
}

#[test]
fn inconsistent_files_are_rejected() {
    let changed = |key: &str, value: usize| {
        let mut config = config();
        config[key] = json!(value);
        load_error(|dir| write(dir, "config.json", &config))
    };
    let error = changed("intermediate_size", 17);
    assert!(error.contains("intermediate.dense.weight has the shape [16, 8]"), "{error}");
    let error = changed("num_hidden_layers", 2);
    assert!(error.contains("no tensor encoder.layer.1."), "{error}");
    let error = changed("num_attention_heads", 3);
    assert!(error.contains("is not a multiple of 3 attention heads"), "{error}");
    let error = load_error(|dir| {
        let mut config = config();
        config["model_type"] = json!("roberta");
        config["max_position_embeddings"] = json!(2);
        write(dir, "config.json", &config);
    });
    assert!(error.contains("max_position_embeddings 2 leaves no position for text"), "{error}");
    let error = changed("max_position_embeddings", 2);
    assert!(error.contains("position_embeddings.weight has the shape"), "{error}");
    let error = load_error(|dir| write(dir, "sentence_bert_config.json", &json!({"max_seq_length": 2})));
    assert!(error.contains("leaves none for text"), "{error}");
    let error = load_error(|dir| fs::write(dir.join("model.safetensors"), "not tensors").unwrap());
    assert!(error.contains("model.safetensors is invalid"), "{error}");
    let nothing = weights("", f32::NAN);
    let error = load_error(|dir| save(&nothing, &dir.join("model.safetensors")));
    assert!(error.contains("model.safetensors is invalid"), "{error}");
}

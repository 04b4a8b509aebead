//! `LLM_FALLBACKS`: models that are tried in order when the primary model fails.

use serde::Deserialize;

use super::{EndpointConfig, EnvReader, Provider, Secret, env::parse_base_url};

pub(super) const LLM_FALLBACKS: &str = "LLM_FALLBACKS";

/// Each model of the chain adds its own waits to a turn.
const MAX_FALLBACKS: usize = 8;
const EXAMPLE: &str = r#"[{"model": "qwen-plus", "base_url": "https://dashscope.aliyuncs.com/compatible-mode/v1", "api_key_env": "QWEN_API_KEY"}]"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FallbackEntry {
    model: String,
    /// Default: that of the primary model.
    base_url: Option<String>,
    /// The variable that holds the key. Default: the primary model's key, which is sent to no other address.
    api_key_env: Option<String>,
}

/// Without a `primary` (demo mode) the list is only validated.
pub(super) fn read(reader: &mut EnvReader<'_>, primary: Option<&EndpointConfig>) -> Vec<EndpointConfig> {
    let Some(json) = reader.text(LLM_FALLBACKS) else { return Vec::new() };
    let entries: Vec<FallbackEntry> = match serde_json::from_str(&json) {
        Ok(entries) => entries,
        Err(error) => {
            // serde's message could quote the value.
            let problem = format!("is not a JSON list of models (line {}, column {})", error.line(), error.column());
            reader.report(LLM_FALLBACKS, problem, EXAMPLE);
            return Vec::new();
        }
    };
    if entries.len() > MAX_FALLBACKS {
        reader.report(LLM_FALLBACKS, format!("has more than {MAX_FALLBACKS} entries"), EXAMPLE);
    }
    let mut endpoints = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        match parse_entry(reader, entry, primary) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(problem) => reader.report(LLM_FALLBACKS, format!("entry {}: {problem}", index + 1), EXAMPLE),
        }
    }
    endpoints
}

fn parse_entry(
    reader: &EnvReader<'_>,
    entry: FallbackEntry,
    primary: Option<&EndpointConfig>,
) -> Result<EndpointConfig, String> {
    if entry.model.trim().is_empty() {
        return Err("model is blank".to_owned());
    }
    let own_url = entry.base_url.map(|url| parse_base_url(&url).map_err(|problem| format!("base_url {problem}")));
    let base_url = own_url.transpose()?.or_else(|| primary.map(|primary| primary.base_url.clone())).unwrap_or_default();
    let same_address = primary.filter(|primary| primary.base_url == base_url);
    let (api_key, key_variable) = match entry.api_key_env {
        Some(variable) => match reader.text(&variable) {
            Some(key) => (Some(Secret::new(key)), variable),
            None => return Err(format!("api_key_env names {variable}, which is not set")),
        },
        None => match same_address {
            Some(primary) => (primary.api_key.clone(), primary.key_variable.clone()),
            None => (None, LLM_FALLBACKS.to_owned()),
        },
    };
    Ok(EndpointConfig {
        provider: same_address.map_or_else(|| Provider::from_url(&base_url), |primary| primary.provider),
        base_url,
        api_key,
        model: entry.model,
        key_variable,
        url_variable: LLM_FALLBACKS,
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ModelConfig, Provider};

    fn read(fallbacks: &str) -> Result<Vec<super::EndpointConfig>, String> {
        let source = |name: &str| match name {
            "LLM_API_KEY" => Some("first".to_owned()),
            "SECOND_KEY" => Some("second".to_owned()),
            "LLM_FALLBACKS" => Some(fallbacks.to_owned()),
            _ => None,
        };
        match Config::read(&source).map_err(|errors| errors.to_string())?.model {
            ModelConfig::Provider(config) => Ok(config.fallbacks),
            ModelConfig::Demo(_) => panic!("demo"),
        }
    }

    #[test]
    fn fallback_inherits_key_only_for_the_same_address() {
        let fallbacks = read(
            r#"[
                {"model": "gpt-4.1-mini"},
                {"model": "deepseek-chat", "base_url": "https://api.deepseek.com/v1/", "api_key_env": "SECOND_KEY"},
                {"model": "own", "base_url": "http://127.0.0.1:11434/v1"}
            ]"#,
        )
        .unwrap();
        let key = |index: usize| fallbacks[index].api_key.as_ref().map(|key| key.expose().to_owned());
        assert_eq!((key(0).as_deref(), fallbacks[0].base_url.as_str()), (Some("first"), "https://api.openai.com/v1"));
        assert_eq!((key(1).as_deref(), fallbacks[1].provider), (Some("second"), Provider::DeepSeek));
        assert_eq!(fallbacks[1].base_url, "https://api.deepseek.com/v1");
        assert_eq!((key(2), fallbacks[2].provider), (None, Provider::Compatible));
    }

    #[test]
    fn invalid_entry_is_reported_by_number_without_its_value() {
        for (fallbacks, expected) in [
            ("gpt-4o", "not a JSON list"),
            (r#"[{"model": "m", "key": "sk-secret"}]"#, "not a JSON list"),
            (r#"[{"model": "m"}, {"model": " "}]"#, "entry 2: model is blank"),
            (r#"[{"model": "m", "base_url": "sk-secret"}]"#, "entry 1: base_url is not a URL"),
            (r#"[{"model": "m", "base_url": "https://h/v1/chat/completions"}]"#, "remove /chat/completions"),
            (r#"[{"model": "m", "api_key_env": "NO_KEY"}]"#, "NO_KEY, which is not set"),
        ] {
            let errors = read(fallbacks).unwrap_err();
            assert!(errors.contains(expected) && errors.contains("LLM_FALLBACKS"), "{fallbacks}: {errors}");
            assert!(!errors.contains("sk-secret"), "{errors}");
        }
    }
}

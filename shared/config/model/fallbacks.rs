//! `LLM_FALLBACKS`: models that are asked where the first one fails.

use serde::Deserialize;

use super::{EndpointConfig, LLM_FALLBACKS, Provider};
use crate::config::{EnvReader, Secret, env::check_base_url};

/// Most models of a chain, because each adds its own waits to a turn.
const MOST: usize = 8;
const EXAMPLE: &str = r#"[{"model": "qwen-plus", "base_url": "https://dashscope.aliyuncs.com/compatible-mode/v1", "api_key_env": "QWEN_API_KEY"}]"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    model: String,
    /// Not given = that of the first model.
    base_url: Option<String>,
    /// The variable that holds the key. Not given = the first model's key, which is sent to no other address.
    api_key_env: Option<String>,
}

/// Reads the list. Without a `primary`, in demo mode, it is only checked.
pub(super) fn read(reader: &mut EnvReader<'_>, primary: Option<&EndpointConfig>) -> Vec<EndpointConfig> {
    let Some(json) = reader.text(LLM_FALLBACKS) else { return Vec::new() };
    let entries: Vec<Entry> = match serde_json::from_str(&json) {
        Ok(entries) => entries,
        Err(error) => {
            // The parser's own words could quote the value.
            let place = format!("is not a JSON list of models (line {}, column {})", error.line(), error.column());
            reader.report(LLM_FALLBACKS, place, EXAMPLE);
            return Vec::new();
        }
    };
    if entries.len() > MOST {
        reader.report(LLM_FALLBACKS, format!("has more than {MOST} entries"), EXAMPLE);
    }
    let mut endpoints = Vec::with_capacity(entries.len());
    for (number, entry) in entries.into_iter().enumerate() {
        match endpoint(reader, entry, primary) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(problem) => reader.report(LLM_FALLBACKS, format!("entry {}: {problem}", number + 1), EXAMPLE),
        }
    }
    endpoints
}

fn endpoint(reader: &EnvReader<'_>, entry: Entry, primary: Option<&EndpointConfig>) -> Result<EndpointConfig, String> {
    if entry.model.trim().is_empty() {
        return Err("model is blank".to_owned());
    }
    let own_url = entry.base_url.map(|url| check_base_url(&url).map_err(|problem| format!("base_url {problem}")));
    let base_url = own_url.transpose()?.or_else(|| primary.map(|primary| primary.base_url.clone())).unwrap_or_default();
    let shared = primary.filter(|primary| primary.base_url == base_url);
    let (api_key, key_variable) = match entry.api_key_env {
        Some(variable) => match reader.text(&variable) {
            Some(key) => (Some(Secret::new(key)), variable),
            None => return Err(format!("api_key_env names {variable}, which is not set")),
        },
        None => match shared {
            Some(primary) => (primary.api_key.clone(), primary.key_variable.clone()),
            None => (None, LLM_FALLBACKS.to_owned()),
        },
    };
    Ok(EndpointConfig {
        provider: shared.map_or_else(|| Provider::from_url(&base_url), |primary| primary.provider),
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
        match Config::read(&source).map_err(|mistakes| mistakes.to_string())?.model {
            ModelConfig::Provider(config) => Ok(config.fallbacks),
            ModelConfig::Demo(_) => panic!("demo"),
        }
    }

    #[test]
    fn a_fallback_takes_address_and_key_of_the_first_model_but_no_key_to_another_address() {
        let fallbacks = read(
            r#"[
                {"model": "gpt-4.1-mini"},
                {"model": "deepseek-chat", "base_url": "https://api.deepseek.com/v1/", "api_key_env": "SECOND_KEY"},
                {"model": "own", "base_url": "http://127.0.0.1:11434/v1"}
            ]"#,
        )
        .unwrap();
        let key = |place: usize| fallbacks[place].api_key.as_ref().map(|key| key.expose().to_owned());
        assert_eq!((key(0).as_deref(), fallbacks[0].base_url.as_str()), (Some("first"), "https://api.openai.com/v1"));
        assert_eq!((key(1).as_deref(), fallbacks[1].provider), (Some("second"), Provider::DeepSeek));
        assert_eq!(fallbacks[1].base_url, "https://api.deepseek.com/v1");
        assert_eq!((key(2), fallbacks[2].provider), (None, Provider::Compatible));
    }

    #[test]
    fn what_is_wrong_with_an_entry_is_said_with_its_number_and_without_its_value() {
        for (fallbacks, said) in [
            ("gpt-4o", "not a JSON list"),
            (r#"[{"model": "m", "key": "sk-secret"}]"#, "not a JSON list"),
            (r#"[{"model": "m"}, {"model": " "}]"#, "entry 2: model is blank"),
            (r#"[{"model": "m", "base_url": "sk-secret"}]"#, "entry 1: base_url is not a URL"),
            (r#"[{"model": "m", "base_url": "https://h/v1/chat/completions"}]"#, "leave out /chat/completions"),
            (r#"[{"model": "m", "api_key_env": "NO_KEY"}]"#, "NO_KEY, which is not set"),
        ] {
            let mistakes = read(fallbacks).unwrap_err();
            assert!(mistakes.contains(said) && mistakes.contains("LLM_FALLBACKS"), "{fallbacks}: {mistakes}");
            assert!(!mistakes.contains("sk-secret"), "{mistakes}");
        }
    }
}

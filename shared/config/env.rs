//! Parses environment variables and collects every invalid value, so that one start reports them all.

use std::{fmt, fs::File, ops::RangeInclusive, path::PathBuf, time::Duration};

use reqwest::Url;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidSetting {
    pub variable: &'static str,
    /// Continues a sentence that begins with the variable's name. It never repeats the value, which may be a secret.
    pub problem: String,
    pub example: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<InvalidSetting>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid configuration:")?;
        for InvalidSetting { variable, problem, example } in &self.0 {
            write!(f, "\n  {variable}: {problem}")?;
            if !example.is_empty() {
                write!(f, " (for example {variable}={example})")?;
            }
        }
        Ok(())
    }
}

/// Each method returns its default after an error, so that reading continues and finds the next one; the result is valid
/// only if [`EnvReader::finish`] succeeds.
pub struct EnvReader<'a> {
    source: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<InvalidSetting>,
}

impl<'a> EnvReader<'a> {
    pub fn new(source: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { source, errors: Vec::new() }
    }

    pub fn report(&mut self, variable: &'static str, problem: impl Into<String>, example: &'static str) {
        self.errors.push(InvalidSetting { variable, problem: problem.into(), example });
    }

    pub(super) fn has_error(&self, variable: &str) -> bool {
        self.errors.iter().any(|error| error.variable == variable)
    }

    /// The trimmed value; a blank one counts as not set.
    #[must_use]
    pub fn text(&self, variable: &str) -> Option<String> {
        (self.source)(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub fn switch(&mut self, variable: &'static str) -> Option<bool> {
        let value = self.text(variable)?;
        match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => {
                self.report(variable, "is neither true nor false", "true");
                None
            }
        }
    }

    pub fn choice<T: Copy>(&mut self, variable: &'static str, choices: &[(&'static str, T)]) -> Option<T> {
        let value = self.text(variable)?;
        let chosen = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(&value));
        if chosen.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            self.report(variable, format!("is not one of {}", words.join(", ")), words.first().unwrap_or(&""));
        }
        chosen.map(|(_, value)| *value)
    }

    pub fn integer(&mut self, variable: &'static str, min: u64, max: u64, example: &'static str) -> Option<u64> {
        let value = self.text(variable)?;
        match value.parse() {
            Ok(number) if (min..=max).contains(&number) => Some(number),
            _ => {
                self.report(variable, format!("is not an integer from {min} to {max}"), example);
                None
            }
        }
    }

    pub fn number(&mut self, variable: &'static str, min: u32, max: u32, example: &'static str) -> Option<u32> {
        let number = self.integer(variable, min.into(), max.into(), example)?;
        u32::try_from(number).ok()
    }

    pub fn decimal(&mut self, variable: &'static str, range: RangeInclusive<f64>, default: f64) -> f64 {
        let Some(value) = self.text(variable) else { return default };
        match value.parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.report(variable, format!("is not a number from {} to {}", range.start(), range.end()), "0.75");
                default
            }
        }
    }

    /// Seconds with an optional fraction, at most a day; 0 is invalid if `positive`.
    pub fn seconds(&mut self, variable: &'static str, default: f64, positive: bool) -> Duration {
        const DAY: f64 = 86_400.0;
        let default = Duration::from_secs_f64(default);
        let Some(value) = self.text(variable) else { return default };
        match value.parse::<f64>() {
            Ok(seconds) if (0.0..=DAY).contains(&seconds) && (seconds > 0.0 || !positive) => {
                Duration::from_secs_f64(seconds)
            }
            _ => {
                let range = if positive { "above 0 and at most 86400" } else { "from 0 to 86400" };
                self.report(variable, format!("is not a number of seconds {range}"), "5");
                default
            }
        }
    }

    /// Whole milliseconds, at most an hour.
    pub fn milliseconds(&mut self, variable: &'static str, default: u64) -> Duration {
        Duration::from_millis(self.integer(variable, 0, 3_600_000, "30").unwrap_or(default))
    }

    /// Without its trailing slash.
    pub fn url(&mut self, variable: &'static str, schemes: &[&str], example: &'static str) -> Option<String> {
        let value = self.text(variable)?;
        let url = parse_url(&value, schemes);
        url.map_err(|problem| self.report(variable, problem, example)).ok()
    }

    pub fn base_url(&mut self, variable: &'static str, example: &'static str) -> Option<String> {
        let value = self.text(variable)?;
        let url = parse_base_url(&value);
        url.map_err(|problem| self.report(variable, problem, example)).ok()
    }

    pub fn file(&mut self, variable: &'static str, example: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(variable)?);
        match File::open(&path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => Some(path),
            Ok(_) => {
                self.report(variable, "is not a file", example);
                None
            }
            Err(error) => {
                self.report(variable, format!("cannot be read: {error}"), example);
                None
            }
        }
    }

    pub fn directory(&mut self, variable: &'static str, example: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(variable)?);
        if !path.is_dir() {
            self.report(variable, "is not a directory", example);
            return None;
        }
        Some(path)
    }

    #[must_use]
    pub fn list(&self, variable: &'static str) -> Vec<String> {
        let value = self.text(variable).unwrap_or_default();
        value.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    }

    pub fn finish<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.errors.is_empty() { Ok(value) } else { Err(ConfigErrors(self.errors)) }
    }
}

fn parse_url(value: &str, schemes: &[&str]) -> Result<String, String> {
    match Url::parse(value) {
        // The banner and the logs show such URLs, and would show the credentials.
        Ok(url) if url.scheme().starts_with("http") && (url.username() != "" || url.password().is_some()) => {
            Err("contains a user or password; put credentials into the variable for the API key".to_owned())
        }
        Ok(url) if schemes.contains(&url.scheme()) => Ok(value.trim_end_matches('/').to_owned()),
        _ => Err(format!("is not a URL that begins with {}://", schemes.join(":// or "))),
    }
}

pub(super) fn parse_base_url(value: &str) -> Result<String, String> {
    let url = parse_url(value, &["http", "https"])?;
    match ["/chat/completions", "/embeddings"].iter().find(|path| url.ends_with(**path)) {
        Some(path) => Err(format!("is the URL of a call, not of the API: remove {path}")),
        None => Ok(url),
    }
}

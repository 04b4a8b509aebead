//! Reads environment variables into types and collects every mistake, so that one start reports them all.

use std::{fmt, fs::File, path::PathBuf, time::Duration};

use reqwest::Url;

/// A variable with a value that can not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidSetting {
    /// Name of the variable.
    pub variable: &'static str,
    /// What is wrong. It never repeats the value, which may be a secret.
    pub problem: String,
    /// A value that would be right.
    pub example: &'static str,
}

/// Every mistake of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<InvalidSetting>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration can not be used:")?;
        for InvalidSetting { variable, problem, example } in &self.0 {
            write!(f, "\n  {variable}: {problem} (for example {variable}={example})")?;
        }
        Ok(())
    }
}

/// Reads variables from a source and notes what is wrong with them.
///
/// Every reader returns its default after a mistake, so that reading goes on and finds the next one; the result is used
/// only if [`Reader::finish`] found none.
pub struct EnvReader<'a> {
    source: &'a dyn Fn(&str) -> Option<String>,
    mistakes: Vec<InvalidSetting>,
}

impl<'a> EnvReader<'a> {
    /// A reader of `source`, which gives the value of a variable by its name.
    pub fn new(source: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { source, mistakes: Vec::new() }
    }

    /// Notes a mistake that concerns a variable.
    pub fn report(&mut self, variable: &'static str, problem: impl Into<String>, example: &'static str) {
        self.mistakes.push(InvalidSetting { variable, problem: problem.into(), example });
    }

    /// Whether a mistake that concerns a variable was noted.
    pub(super) fn has_error(&self, variable: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.variable == variable)
    }

    /// The value of a variable; empty or blank counts as not set.
    #[must_use]
    pub fn text(&self, variable: &str) -> Option<String> {
        (self.source)(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// A switch: `true`, `1`, `yes`, `on`, or `false`, `0`, `no`, `off`.
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

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, variable: &'static str, choices: &[(&'static str, T)]) -> Option<T> {
        let value = self.text(variable)?;
        let chosen = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(&value));
        if chosen.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            self.report(variable, format!("is not one of {}", words.join(", ")), words.first().unwrap_or(&""));
        }
        chosen.map(|(_, value)| *value)
    }

    /// A whole number from `least` to `most`.
    pub fn integer(&mut self, variable: &'static str, least: u64, most: u64, example: &'static str) -> Option<u64> {
        let value = self.text(variable)?;
        match value.parse() {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.report(variable, format!("is not a whole number from {least} to {most}"), example);
                None
            }
        }
    }

    /// A whole number from `least` to `most`, which fits into 32 bits.
    pub fn number(&mut self, variable: &'static str, least: u32, most: u32, example: &'static str) -> Option<u32> {
        let number = self.integer(variable, least.into(), most.into(), example)?;
        u32::try_from(number).ok()
    }

    /// A number from `least` to `most`.
    pub fn decimal(
        &mut self,
        variable: &'static str,
        (least, most): (f64, f64),
        default: f64,
        example: &'static str,
    ) -> f64 {
        let Some(value) = self.text(variable) else { return default };
        match value.parse() {
            Ok(number) if (least..=most).contains(&number) => number,
            _ => {
                self.report(variable, format!("is not a number from {least} to {most}"), example);
                default
            }
        }
    }

    /// A length of time in seconds, fractions allowed, from 0 (or above it, if `positive`) to a day.
    pub fn seconds(&mut self, variable: &'static str, default: f64, positive: bool) -> Duration {
        const DAY: f64 = 86_400.0;
        let fallback = Duration::from_secs_f64(default);
        let Some(value) = self.text(variable) else { return fallback };
        match value.parse::<f64>() {
            Ok(seconds) if (0.0..=DAY).contains(&seconds) && (seconds > 0.0 || !positive) => {
                Duration::from_secs_f64(seconds)
            }
            _ => {
                let range = if positive { "above 0 and at most 86400" } else { "from 0 to 86400" };
                self.report(variable, format!("is not a number of seconds {range}"), "5");
                fallback
            }
        }
    }

    /// A length of time in whole milliseconds, up to an hour.
    pub fn milliseconds(&mut self, variable: &'static str, default: u64) -> Duration {
        Duration::from_millis(self.integer(variable, 0, 3_600_000, "30").unwrap_or(default))
    }

    /// An absolute URL of one of the schemes, without its trailing slash.
    pub fn url(&mut self, variable: &'static str, schemes: &[&str], example: &'static str) -> Option<String> {
        let value = self.text(variable)?;
        let url = check_url(&value, schemes);
        url.map_err(|problem| self.report(variable, problem, example)).ok()
    }

    /// The base URL of a provider's API, without its trailing slash.
    pub fn base_url(&mut self, variable: &'static str, example: &'static str) -> Option<String> {
        let value = self.text(variable)?;
        let url = check_base_url(&value);
        url.map_err(|problem| self.report(variable, problem, example)).ok()
    }

    /// The path of a file that can be read.
    pub fn file(&mut self, variable: &'static str, example: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(variable)?);
        match File::open(&path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => Some(path),
            Ok(_) => {
                self.report(variable, "is not a file", example);
                None
            }
            Err(error) => {
                self.report(variable, format!("can not be read: {error}"), example);
                None
            }
        }
    }

    /// The path of a directory that exists.
    pub fn directory(&mut self, variable: &'static str, example: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(variable)?);
        if !path.is_dir() {
            self.report(variable, "is not a directory", example);
            return None;
        }
        Some(path)
    }

    /// A list separated by commas; empty entries are skipped.
    #[must_use]
    pub fn list(&self, variable: &'static str) -> Vec<String> {
        let value = self.text(variable).unwrap_or_default();
        value.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All mistakes that were noted.
    pub fn finish<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.mistakes.is_empty() { Ok(value) } else { Err(ConfigErrors(self.mistakes)) }
    }
}

/// An absolute URL of one of the schemes, without its trailing slash.
fn check_url(value: &str, schemes: &[&str]) -> Result<String, String> {
    match Url::parse(value) {
        // Such a URL is shown at the start and in logs; a key in it would be too.
        Ok(url) if url.scheme().starts_with("http") && (url.username() != "" || url.password().is_some()) => {
            Err("contains a user or password, which belongs into a variable for a key".to_owned())
        }
        Ok(url) if schemes.contains(&url.scheme()) => Ok(value.trim_end_matches('/').to_owned()),
        _ => Err(format!("is not a URL that begins with {}://", schemes.join(":// or "))),
    }
}

/// The base URL of a provider's API: what stands before `/chat/completions`.
pub(super) fn check_base_url(value: &str) -> Result<String, String> {
    let url = check_url(value, &["http", "https"])?;
    match ["/chat/completions", "/embeddings"].iter().find(|call| url.ends_with(**call)) {
        Some(call) => Err(format!("is the address of a call, not of the API: leave out {call}")),
        None => Ok(url),
    }
}

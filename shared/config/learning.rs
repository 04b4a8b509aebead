use super::EnvReader;

pub(super) const LEARNING: &str = "LEARNING";

/// Titles and summaries of conversations are generated in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LearningConfig {
    /// The turn verbatim, and facts about the user extracted from it.
    #[default]
    On,
    Verbatim,
    Off,
}

impl LearningConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>) -> Self {
        // Not `choice`: these words are case-sensitive.
        match reader.text(LEARNING).as_deref() {
            None | Some("on") => Self::On,
            Some("verbatim") => Self::Verbatim,
            Some("off") => Self::Off,
            Some(_) => {
                reader.report(LEARNING, "is not one of on, verbatim, off", "on");
                Self::On
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn learning_is_on_by_default() {
        let read = |value: Option<&str>| {
            let value = value.map(str::to_owned);
            Config::read(&|name| value.clone().filter(|_| name == LEARNING)).map(|config| config.learning)
        };
        assert_eq!(read(None).unwrap(), LearningConfig::On);
        assert_eq!(read(Some("verbatim")).unwrap(), LearningConfig::Verbatim);
        assert_eq!(read(Some("off")).unwrap(), LearningConfig::Off);
        assert!(read(Some("sometimes")).unwrap_err().to_string().contains("LEARNING=on"));
    }
}

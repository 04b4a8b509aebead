use std::path::Path;

use serde::Deserialize;

use super::files::{LocalModelError, malformed, read_optional, unsupported};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    Mean,
    /// The first token, which is special.
    Cls,
    Max,
}

/// Releases of sentence-transformers before 6 write a flag for each mode, later ones a name.
#[derive(Deserialize, Default)]
#[serde(default)]
struct PoolingConfig {
    pooling_mode: Option<String>,
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

impl PoolingConfig {
    fn modes(self) -> Vec<String> {
        let flags = [
            ("cls", self.pooling_mode_cls_token),
            ("mean", self.pooling_mode_mean_tokens),
            ("max", self.pooling_mode_max_tokens),
            ("mean_sqrt_len_tokens", self.pooling_mode_mean_sqrt_len_tokens),
            ("weightedmean", self.pooling_mode_weightedmean_tokens),
            ("lasttoken", self.pooling_mode_lasttoken),
        ];
        let flagged = flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name.to_owned());
        self.pooling_mode.into_iter().chain(flagged).collect()
    }
}

impl Pooling {
    /// The default is the mean, as in sentence-transformers.
    pub(super) fn read(path: &Path) -> Result<Self, LocalModelError> {
        let Some(config) = read_optional::<PoolingConfig>(path)? else {
            return Ok(Self::Mean);
        };
        let modes = config.modes();
        match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            // They differ only in the length of the vector, which is normalized.
            ["mean" | "mean_sqrt_len_tokens"] => Ok(Self::Mean),
            ["cls"] => Ok(Self::Cls),
            ["max"] => Ok(Self::Max),
            [] => Err(malformed(path, "it chooses no pooling mode; mean, cls and max are supported")),
            _ => Err(unsupported(path, format!("pooling by {}", modes.join(" with ")), "one of mean, cls and max")),
        }
    }

    /// Part of the stored model name, so it must not change.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
        }
    }

    /// Not normalized: a mean is a sum.
    pub(super) fn pool(self, tokens: &[f32], dimension: usize) -> Vec<f32> {
        let mut rows = tokens.chunks_exact(dimension);
        let mut pooled = rows.next().map(<[f32]>::to_vec).unwrap_or_default();
        let combine: fn(f32, f32) -> f32 = match self {
            Self::Cls => return pooled,
            Self::Mean => |sum, x| sum + x,
            Self::Max => f32::max,
        };
        for row in rows {
            for (into, x) in pooled.iter_mut().zip(row) {
                *into = combine(*into, *x);
            }
        }
        pooled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [f32; 6] = [1.0, -2.0, 3.0, 3.0, -4.0, 1.0];

    fn read(json: &str) -> Result<Pooling, LocalModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        Pooling::read(&path)
    }

    #[test]
    fn pooling_modes_combine_tokens() {
        assert_eq!(Pooling::Mean.pool(&TOKENS, 3), [4.0, -6.0, 4.0]);
        assert_eq!(Pooling::Cls.pool(&TOKENS, 3), [1.0, -2.0, 3.0]);
        assert_eq!(Pooling::Max.pool(&TOKENS, 3), [3.0, -2.0, 3.0]);
    }

    #[test]
    fn pooling_mode_is_read_from_flag_or_name() {
        let old = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        assert_eq!(read(old).unwrap(), Pooling::Cls);
        assert_eq!(read(r#"{"embedding_dimension": 384, "pooling_mode": "max"}"#).unwrap(), Pooling::Max);
        assert_eq!(read(r#"{"pooling_mode_mean_sqrt_len_tokens": true}"#).unwrap(), Pooling::Mean);
    }

    #[test]
    fn pooling_without_file_is_mean() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Pooling::read(&dir.path().join("config.json")).unwrap(), Pooling::Mean);
    }

    #[test]
    fn unsupported_pooling_mode_is_named() {
        let error = read(r#"{"pooling_mode": "lasttoken"}"#).unwrap_err().to_string();
        assert!(error.contains("pooling by lasttoken"), "{error}");
        let error = read(r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#).unwrap_err();
        assert!(error.to_string().contains("cls with mean"), "{error}");
        assert!(read("{}").unwrap_err().to_string().contains("no pooling mode"));
    }
}

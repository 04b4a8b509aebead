use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    pub nickname: String,
    /// IANA name; anything else counts as UTC.
    pub timezone: String,
    pub language_tag: String,
    pub is_pro: bool,
    pub preferences: BTreeMap<String, String>,
    /// Null: none.
    pub extra_context: Value,
    /// Of the learner; 0: unknown.
    pub level: i32,
}

impl Profile {
    #[must_use]
    pub fn time_zone(&self) -> TimeZone {
        time_zone(&self.timezone)
    }

    /// A gateway may know a nickname and nothing else.
    #[must_use]
    pub fn with_defaults_from(self, earlier: Self) -> Self {
        if self == Self::default() {
            return earlier;
        }
        let text = |new: String, old: String| if new.is_empty() { old } else { new };
        let mut preferences = earlier.preferences;
        preferences.extend(self.preferences);
        Self {
            nickname: text(self.nickname, earlier.nickname),
            timezone: text(self.timezone, earlier.timezone),
            language_tag: text(self.language_tag, earlier.language_tag),
            // A bool has no "not given": a profile with any field set states the plan too.
            is_pro: self.is_pro,
            preferences,
            extra_context: if self.extra_context.is_null() { earlier.extra_context } else { self.extra_context },
            level: if self.level == 0 { earlier.level } else { self.level },
        }
    }
}

/// UTC for an unknown name: devices send abbreviations such as `CST`.
pub(super) fn time_zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}

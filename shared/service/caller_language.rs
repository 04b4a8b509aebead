//! The language of the texts that a caller reads: that of the request's profile, else of the user's stored profile, else of the
//! message, else of the metadata `accept-language`, else English.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::metadata::MetadataMap;

use crate::{
    chat::Profile,
    conversation::ConversationStore,
    identity::UserId,
    language::Language,
    proto::agent_v1::{self as pb, chat_request::Input},
};

/// A refusal in another language is better than a late one.
const PROFILE_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that a call itself says about the language of its caller.
#[derive(Debug, Clone, Default)]
pub(super) struct CallerLanguage {
    /// BCP 47 tag of the request's profile; may be empty.
    tag: String,
    message: Option<Language>,
    accepted: Option<Language>,
}

impl CallerLanguage {
    pub(super) fn of_call(metadata: &MetadataMap) -> Self {
        let accepted = metadata.get_all("accept-language").into_iter().filter_map(|value| value.to_str().ok());
        // A header that is a list may be repeated instead (RFC 9110, section 5.3).
        let accepted = accepted.collect::<Vec<_>>().join(",");
        Self { accepted: Language::from_accept_language(&accepted), ..Self::default() }
    }

    pub(super) fn of_chat(metadata: &MetadataMap, request: &pb::ChatRequest) -> Self {
        let tag = request.user_profile.as_ref().map_or("", |profile| profile.language.trim()).to_owned();
        let message = match &request.input {
            // The tag decides, so the text need not be read.
            Some(Input::Message(message)) if tag.is_empty() => Language::of_text(message),
            _ => None,
        };
        Self { tag, message, ..Self::of_call(metadata) }
    }

    /// `stored_tag` is that of the user's stored profile, or of the turn that the call continues; it may be empty.
    pub(super) fn resolve(&self, stored_tag: &str) -> Language {
        match [self.tag.as_str(), stored_tag].into_iter().find(|tag| !tag.is_empty()) {
            Some(tag) => Language::from_tag(tag),
            None => self.message.or(self.accepted).unwrap_or_default(),
        }
    }

    /// For a refusal: other calls have the profile from their admission. A store that fails or is slow is ignored.
    pub(super) async fn resolve_for(&self, user: &UserId, store: Option<&Arc<dyn ConversationStore>>) -> Language {
        let stored_tag = match store {
            Some(store) if self.tag.is_empty() => stored_tag(store, user).await,
            _ => String::new(),
        };
        self.resolve(&stored_tag)
    }
}

async fn stored_tag(store: &Arc<dyn ConversationStore>, user: &UserId) -> String {
    match timeout(PROFILE_TIMEOUT, store.load_profile(user)).await {
        Ok(Ok(profile)) => decode_profile(profile).language_tag,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the stored profile cannot be read for the language of a refusal");
            String::new()
        }
        Err(_) => String::new(),
    }
}

pub(super) fn decode_profile(stored: Option<Vec<u8>>) -> Profile {
    stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(tag: &str, message: &str, accept_language: &str) -> CallerLanguage {
        let mut metadata = MetadataMap::new();
        metadata.insert("accept-language", accept_language.parse().unwrap());
        let profile = pb::UserProfile { language: tag.to_owned(), ..Default::default() };
        let input = Some(Input::Message(message.to_owned()));
        CallerLanguage::of_chat(
            &metadata,
            &pb::ChatRequest { user_profile: Some(profile), input, ..Default::default() },
        )
    }

    #[test]
    fn repeated_accept_language_counts_as_one_list() {
        for (values, expected) in [
            (&["fr", "zh-CN"][..], Some(Language::Chinese)),
            (&["zh;q=0.5", "en"], Some(Language::English)),
            (&["zh", "en"], Some(Language::Chinese)),
            (&["fr"], None),
            (&[], None),
        ] {
            let mut metadata = MetadataMap::new();
            for value in values {
                metadata.append("accept-language", value.parse().unwrap());
            }
            assert_eq!(CallerLanguage::of_call(&metadata).accepted, expected, "{values:?}");
        }
    }

    #[test]
    fn profile_precedes_stored_profile_message_and_metadata() {
        let (english, chinese) = (Language::English, Language::Chinese);
        for (caller, stored, expected) in [
            (chat("en", "你好", "zh"), "zh", english),
            (chat("", "hello", "en"), "zh-CN", chinese),
            (chat("", "你好", "en"), "fr", english),
            (chat("", "你好", "en"), "", chinese),
            (chat(" ", "What does 好 mean?", "zh"), "", english),
            (chat("", "42", "zh"), "", chinese),
            (chat("", "42", "fr"), "", english),
        ] {
            assert_eq!(caller.resolve(stored), expected, "{caller:?} {stored}");
        }
    }
}

//! `ChatRequest` to [`ChatCall`] and [`TurnInput`], in one conversion.

use prost_types::{Struct, Value as ProtoValue, value::Kind};
use serde_json::{Map, Number, Value};
use tonic::metadata::MetadataMap;

use super::{
    MAX_CONTEXT_BYTES, MAX_ENTRIES, MAX_HISTORY, MAX_MESSAGE_BYTES, MAX_URL_BYTES, Parsed, at_most,
    fingerprint::fingerprint, invalid, map, name, names, number, text,
};
use crate::{
    chat::{HistoryMessage, Profile, Speaker, ToolResult, TurnInput},
    error::{InvalidArgument, Problem, check_text},
    identity::{MAX_ID_BYTES, Principal, RequestId, SessionId, UserId},
    language::Language,
    memory::Filter,
    proto::agent_v1 as pb,
    service::caller_language::CallerLanguage,
    tools::ToolSelection,
};

/// Metadata with the `response_id` of the last frame that the client received.
pub(in crate::service) const LAST_RESPONSE_ID: &str = "x-last-response-id";
/// Metadata: `off` = no retrieval in this turn.
const RECALL: &str = "x-recall";

/// A request of an authenticated caller.
pub(in crate::service) struct IncomingChat<'a> {
    pub(in crate::service) principal: Principal,
    pub(in crate::service) metadata: &'a MetadataMap,
    pub(in crate::service) language: CallerLanguage,
    pub(in crate::service) request: pb::ChatRequest,
}

pub(in crate::service) struct ChatCall {
    pub(in crate::service) user: UserId,
    pub(in crate::service) session: SessionId,
    pub(in crate::service) request: RequestId,
    pub(in crate::service) fingerprint: [u8; 32],
    /// The last frame that the client received: it resumes a stream.
    pub(in crate::service) last_response_id: Option<String>,
    pub(in crate::service) is_pro: bool,
    /// The call starts its session or brings the history, so that its turn needs nothing from the store.
    pub(in crate::service) is_self_contained: bool,
    /// Citations have the full content instead of an excerpt.
    pub(in crate::service) full_citations: bool,
    pub(in crate::service) language: CallerLanguage,
    pub(in crate::service) input: ChatInput,
}

pub(in crate::service) enum ChatInput {
    Message(Box<TurnInput>),
    ToolResult(ToolResult),
}

impl ChatCall {
    pub(in crate::service) fn model(&self) -> Option<&str> {
        match &self.input {
            ChatInput::Message(input) => input.model.as_deref(),
            ChatInput::ToolResult(_) => None,
        }
    }
}

pub(in crate::service) fn parse(incoming: IncomingChat<'_>) -> Parsed<ChatCall> {
    let IncomingChat { principal, metadata, language, mut request } = incoming;
    let last_response_id = last_response_id(metadata)?;
    // The same request may name its user in its body or in its metadata.
    principal.user.as_str().clone_into(&mut request.user_id);
    let fingerprint = fingerprint(&request);
    let is_self_contained = request.session_id.is_empty() || !request.history.is_empty();
    let session = match request.session_id.as_str() {
        "" => SessionId::generate(),
        id => SessionId::parse("session_id", id)?,
    };
    let request_id = match request.request_id.as_str() {
        "" => RequestId::generate(),
        id => RequestId::parse("request_id", id)?,
    };
    let profile = profile(request.user_profile.take().unwrap_or_default())?;
    let may_recall = may_recall(metadata)?;
    Ok(ChatCall {
        session: session.clone(),
        request: request_id,
        fingerprint,
        last_response_id,
        is_pro: principal.is_pro.unwrap_or(profile.is_pro),
        is_self_contained,
        full_citations: request.include_references,
        input: match request.input.take() {
            None => return invalid("input", Problem::ExactlyOneOf { fields: "message, tool_result" }),
            Some(pb::chat_request::Input::ToolResult(result)) => ChatInput::ToolResult(tool_result(result)?),
            Some(pb::chat_request::Input::Message(message)) => {
                let message = text("message", message, MAX_MESSAGE_BYTES)?;
                let input = turn_input(principal.user.clone(), session, profile, message, request)?;
                let recall = input.recall.filter(|_| may_recall);
                ChatInput::Message(Box::new(TurnInput { recall, language: language.resolve(""), ..input }))
            }
        },
        user: principal.user,
        language,
    })
}

/// All values of a name. A proxy or a Function URL may have joined several to one (RFC 9110, section 5.3).
fn values<'a>(metadata: &'a MetadataMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let values = metadata.get_all(name).into_iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// Refuses a call with two of them, because it may resume behind one frame only.
fn last_response_id(metadata: &MetadataMap) -> Parsed<Option<String>> {
    let mut ids = values(metadata, LAST_RESPONSE_ID);
    let Some(first) = ids.next() else { return Ok(None) };
    match std::str::from_utf8(first) {
        Ok(id) if ids.all(|other| other == first) => Ok(Some(id.to_owned())),
        _ => invalid(LAST_RESPONSE_ID, Problem::UnknownFrame),
    }
}

/// A value that is not known is refused, as are values that contradict each other: a caller that wants no retrieval must not get
/// it for a misspelling.
fn may_recall(metadata: &MetadataMap) -> Parsed<bool> {
    let mut choice = None;
    for value in values(metadata, RECALL) {
        let may_recall = match value {
            value if value.eq_ignore_ascii_case(b"off") => false,
            value if value.eq_ignore_ascii_case(b"on") => true,
            _ => return invalid(RECALL, Problem::NotOneOf { known: "on, off" }),
        };
        if *choice.get_or_insert(may_recall) != may_recall {
            return invalid(RECALL, Problem::NotOneOf { known: "on, off" });
        }
    }
    Ok(choice.unwrap_or(true))
}

fn recall_filter(file_ids: Vec<String>, document_filter: Vec<String>, use_documents: Option<bool>) -> Parsed<Filter> {
    let file_ids = names("file_ids", file_ids, MAX_ENTRIES)?;
    let document_filter = names("document_filter", document_filter, MAX_ENTRIES)?;
    if use_documents == Some(false) {
        for (field, ids) in [("file_ids", &file_ids), ("document_filter", &document_filter)] {
            if !ids.is_empty() {
                return invalid(field, Problem::Contradicts { field: "use_document_context", value: "false" });
            }
        }
        return Ok(Filter::without_documents());
    }
    // The message's documents are narrower than those of the session.
    let document_ids = if file_ids.is_empty() { document_filter } else { file_ids };
    Ok(Filter { document_ids, ..Filter::default() })
}

fn turn_input(
    user: UserId,
    session: SessionId,
    profile: Profile,
    message: String,
    request: pb::ChatRequest,
) -> Parsed<TurnInput> {
    let active_tools = names("active_tools", request.active_tools, MAX_ENTRIES)?;
    check_text("chat_mode", &request.chat_mode, MAX_ID_BYTES)?;
    let recall = recall_filter(request.file_ids, request.document_filter, request.use_document_context)?;
    let config = request.config.unwrap_or_default();
    let tools = match (active_tools.is_empty(), config.tools_enabled) {
        (false, _) => ToolSelection::Named(active_tools),
        (true, true) => ToolSelection::All,
        (true, false) => ToolSelection::None,
    };
    Ok(TurnInput {
        user,
        session,
        message,
        profile,
        language: Language::default(),
        extra_context: request.extra_context.map_or(Ok(Value::Null), |context| json("extra_context", context))?,
        history: history(request.history)?,
        model: model(config.model)?,
        temperature: config.temperature.map(|t| number("config.temperature", t, 2)).transpose()?,
        max_tokens: config.max_tokens.map(max_tokens).transpose()?,
        recall: Some(recall),
        tools,
        lease: None,
        stored_history: None,
    })
}

fn tool_result(result: pb::ToolResult) -> Parsed<ToolResult> {
    name("tool_result.tool_call_id", &result.tool_call_id)?;
    check_text("tool_result.tool_name", &result.tool_name, MAX_ID_BYTES)?;
    check_text("tool_result.result_json", &result.result_json, MAX_MESSAGE_BYTES)?;
    check_text("tool_result.error_message", &result.error_message, MAX_MESSAGE_BYTES)?;
    let outcome = match (result.is_error, result.error_message.trim(), result.result_json.trim()) {
        // A tool may have no result.
        (false, _, "") => Ok("null".to_owned()),
        (false, ..) => Ok(result.result_json),
        (true, "", "") => Err("the tool failed".to_owned()),
        // A failed tool may report in either field.
        (true, "", _) => Err(result.result_json),
        (true, ..) => Err(result.error_message),
    };
    Ok(ToolResult { call_id: result.tool_call_id, outcome })
}

fn model(model: String) -> Parsed<Option<String>> {
    if model.is_empty() {
        return Ok(None);
    }
    check_text("config.model", &model, MAX_ID_BYTES)?;
    // Unlike identifiers, models may have a slash: owner/model.
    if model.chars().any(char::is_control) {
        return invalid("config.model", Problem::NotAnIdentifier);
    }
    Ok(Some(model))
}

fn max_tokens(max_tokens: i32) -> Parsed<u32> {
    let tokens = u32::try_from(max_tokens).ok().filter(|tokens| *tokens >= 1);
    tokens.ok_or_else(|| InvalidArgument::new("config.max_tokens", Problem::OutOfRange { min: 1, max: None }))
}

fn profile(profile: pb::UserProfile) -> Parsed<Profile> {
    for (field, value) in [
        ("user_profile.nickname", &profile.nickname),
        ("user_profile.timezone", &profile.timezone),
        ("user_profile.language", &profile.language),
    ] {
        check_text(field, value, MAX_ID_BYTES)?;
    }
    check_text("user_profile.avatar_url", &profile.avatar_url, MAX_URL_BYTES)?;
    check_text("user_profile.extra_context", &profile.extra_context, MAX_CONTEXT_BYTES)?;
    let extra_context = match profile.extra_context.trim() {
        "" => Value::Null,
        // The model can still use text that is no JSON.
        json => serde_json::from_str(json).unwrap_or_else(|_| Value::String(json.to_owned())),
    };
    Ok(Profile {
        nickname: profile.nickname,
        timezone: profile.timezone,
        language_tag: profile.language.trim().to_owned(),
        is_pro: profile.is_pro,
        preferences: map("user_profile.preferences", profile.preferences)?,
        extra_context,
        level: profile.level,
    })
}

fn history(history: Vec<pb::ChatMessage>) -> Parsed<Vec<HistoryMessage>> {
    at_most("history", &history, MAX_HISTORY)?;
    let message = |(index, message): (usize, pb::ChatMessage)| {
        let field = |name: &str| format!("history[{index}].{name}");
        check_text(&field("content"), &message.content, MAX_MESSAGE_BYTES)?;
        check_text(&field("name"), &message.name, MAX_ID_BYTES)?;
        check_text(&field("tool_call_id"), &message.tool_call_id, MAX_ID_BYTES)?;
        map(&field("metadata"), message.metadata)?;
        let speaker = match message.role.as_str() {
            "user" => Speaker::User,
            "assistant" => Speaker::Assistant,
            "system" => Speaker::System,
            "tool" => {
                name(&field("tool_call_id"), &message.tool_call_id)?;
                Speaker::Tool(message.name)
            }
            _ => return invalid(field("role"), Problem::NotOneOf { known: "user, assistant, system, tool" }),
        };
        Ok(HistoryMessage { speaker, content: message.content })
    };
    history.into_iter().enumerate().map(message).collect()
}

/// Protobuf decoding has bounded the depth.
fn json(field: &str, context: Struct) -> Parsed<Value> {
    let json = object(field, context)?;
    // The prompt has the JSON, so its length counts.
    if json.to_string().len() > MAX_CONTEXT_BYTES {
        return invalid(field, Problem::TooLong { limit_bytes: MAX_CONTEXT_BYTES });
    }
    Ok(json)
}

fn object(field: &str, context: Struct) -> Parsed<Value> {
    let entry = |(name, value): (String, ProtoValue)| {
        check_text(field, &name, MAX_CONTEXT_BYTES)?;
        Ok((name, value_of(field, value)?))
    };
    Ok(Value::Object(context.fields.into_iter().map(entry).collect::<Parsed<Map<_, _>>>()?))
}

fn value_of(field: &str, value: ProtoValue) -> Parsed<Value> {
    let malformed = || InvalidArgument::new(field, Problem::NotJson);
    Ok(match value.kind.ok_or_else(malformed)? {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(value) => Value::Bool(value),
        Kind::NumberValue(value) => Value::Number(number_of(value).ok_or_else(malformed)?),
        Kind::StringValue(value) => {
            check_text(field, &value, MAX_CONTEXT_BYTES)?;
            Value::String(value)
        }
        Kind::ListValue(list) => {
            Value::Array(list.values.into_iter().map(|value| value_of(field, value)).collect::<Parsed<_>>()?)
        }
        Kind::StructValue(inner) => object(field, inner)?,
    })
}

/// A whole number becomes an integer: a `Struct` has only doubles, and the prompt should have 42 and not 42.0.
fn number_of(value: f64) -> Option<Number> {
    const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= LARGEST_EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked above")]
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &'static str, values: &[&str]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for value in values {
            metadata.append(name, value.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn repeated_recall_is_joined_or_refused_if_contradicting() {
        for (values, expected) in [
            (&[][..], Some(true)),
            (&["off"], Some(false)),
            (&["off, off"], Some(false)),
            (&["Off", " off ,OFF"], Some(false)),
            (&["on", "on"], Some(true)),
            (&["on, off"], None),
            (&["off", "on"], None),
            (&["off,"], None),
            (&[""], None),
        ] {
            assert_eq!(may_recall(&metadata(RECALL, values)).ok(), expected, "{values:?}");
        }
    }

    #[test]
    fn repeated_last_response_id_is_joined_or_refused_if_contradicting() {
        for (values, expected) in [
            (&[][..], Some(None)),
            (&["a-1"], Some(Some("a-1"))),
            (&["a-1, a-1", "a-1"], Some(Some("a-1"))),
            (&["a-1, a-2"], None),
            (&["a-1", "a-2"], None),
        ] {
            let read = last_response_id(&metadata(LAST_RESPONSE_ID, values)).ok();
            assert_eq!(read.as_ref().map(Option::as_deref), expected, "{values:?}");
        }
    }
}

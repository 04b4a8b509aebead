//! Walks every text that a caller can read, in both languages. An enum with a new variant does not compile until it is listed.

use std::{collections::BTreeSet, time::Duration};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    config::VARIABLES,
    conversation::StoreError,
    embedding::EmbedError,
    error::{InvalidArgument, Problem},
    identity::AuthnError,
    llm::ModelError,
    memory::MemoryError,
    service::{
        error::{AdmissionError, ConversationError, LimitExceeded, RpcError as _},
        failure, status,
    },
};

/// The values of an enum, each variant with at least one.
macro_rules! every {
    ($enum:ident { $($variant:ident: $($value:expr),+;)+ }) => {{
        let _every_variant_is_listed = |value: &$enum| match value {
            $($enum::$variant { .. } => {})+
        };
        vec![$($($value),+),+]
    }};
}

fn problems() -> Vec<Problem> {
    every!(Problem {
        Missing: Problem::Missing;
        Blank: Problem::Blank;
        TooLong: Problem::TooLong { limit_bytes: 256 };
        TooMany: Problem::TooMany { limit: 200 };
        TooManyTermsInMemory: Problem::TooManyTermsInMemory { found: 20_000, limit: 16_000 };
        TooManyTerms: Problem::TooManyTerms { found: 2_000_000, limit: 500_000 };
        TooManyChunks: Problem::TooManyChunks { found: 30_000, limit: 20_000 };
        TooLongForChunks: Problem::TooLongForChunks { chunks: 2_000, found_bytes: 128_000_000, limit_bytes: 20_000_000 };
        TooManyFollowingTurns: Problem::TooManyFollowingTurns { found_bytes: 8_000_000, limit_bytes: 500_000 };
        Nul: Problem::Nul;
        NotAnIdentifier: Problem::NotAnIdentifier;
        OutOfRange: Problem::OutOfRange { min: 0, max: Some(2) }, Problem::OutOfRange { min: 1, max: None };
        NotOneOf: Problem::NotOneOf { known: "user, assistant, system, tool" };
        ExactlyOneOf: Problem::ExactlyOneOf { fields: "message, tool_result" };
        DiffersFromMetadata: Problem::DiffersFromMetadata { key: "user-id" };
        Contradicts: Problem::Contradicts { field: "use_document_context", value: "false" };
        UsedForAnotherRequest: Problem::UsedForAnotherRequest;
        NotVisibleAscii: Problem::NotVisibleAscii;
        NotAPageToken: Problem::NotAPageToken;
        NotATimestamp: Problem::NotATimestamp;
        NotOneLine: Problem::NotOneLine;
        NotJson: Problem::NotJson;
        SupersedesInCircle: Problem::SupersedesInCircle;
        NotALink: Problem::NotALink;
        UnknownFrame: Problem::UnknownFrame;
        UnknownModel: Problem::UnknownModel;
        UnknownToolCall: Problem::UnknownToolCall;
        AnsweredToolCall: Problem::AnsweredToolCall;
    })
}

fn quotas() -> Vec<QuotaKind> {
    every!(QuotaKind {
        RequestsPerMinute: QuotaKind::RequestsPerMinute;
        ConcurrentStreams: QuotaKind::ConcurrentStreams;
        TokensPerDay: QuotaKind::TokensPerDay;
        CallsPerMinute: QuotaKind::CallsPerMinute;
        ConcurrentCalls: QuotaKind::ConcurrentCalls;
        ExportsPerMinute: QuotaKind::ExportsPerMinute;
        ConcurrentExports: QuotaKind::ConcurrentExports;
        EmbeddedBytesPerDay: QuotaKind::EmbeddedBytesPerDay;
    })
}

fn exceeded(quota: QuotaKind, retry_after: Duration) -> LimitExceeded {
    LimitExceeded { quota, limit: 120, retry_after: Some(retry_after) }
}

fn admission_errors() -> Vec<AdmissionError> {
    let retry_after = Duration::from_secs(57);
    let invalid = |problem| InvalidArgument::new("history[2].role", problem);
    let credentials = every!(CredentialError {
        Missing: CredentialError::Missing;
        Invalid: CredentialError::Invalid;
        Expired: CredentialError::Expired;
        WrongInternalKey: CredentialError::WrongInternalKey;
        KeysUnavailable: CredentialError::KeysUnavailable;
    });
    let mut authn = every!(AuthnError {
        Invalid: AuthnError::Invalid(invalid(Problem::Missing));
        Unauthenticated: AuthnError::Unauthenticated(CredentialError::Missing);
        PermissionDenied: AuthnError::PermissionDenied;
    });
    authn.extend(credentials.into_iter().map(AuthnError::Unauthenticated));
    let mut errors = every!(AdmissionError {
        InvalidArgument: AdmissionError::InvalidArgument(invalid(Problem::Blank));
        Authn: AdmissionError::Authn(AuthnError::PermissionDenied);
        StoreUnavailable: AdmissionError::StoreUnavailable(StoreError::Timeout);
        Busy: AdmissionError::Busy { retry_after };
        LimitExceeded: AdmissionError::LimitExceeded(exceeded(QuotaKind::TokensPerDay, retry_after));
        Overloaded: AdmissionError::Overloaded;
        TooManyReaders: AdmissionError::TooManyReaders;
    });
    errors.extend(problems().into_iter().map(|problem| invalid(problem).into()));
    errors.extend(authn.into_iter().map(AdmissionError::from));
    errors.extend(quotas().into_iter().map(|quota| exceeded(quota, retry_after).into()));
    errors
}

fn memory_errors() -> Vec<MemoryError> {
    let embedding = every!(EmbedError {
        Unreachable: EmbedError::Unreachable("secret".into());
        Rejected: EmbedError::Rejected(401), EmbedError::Rejected(400), EmbedError::Rejected(500);
        InvalidResponse: EmbedError::InvalidResponse("secret".into());
        Local: EmbedError::Local("secret".into());
    });
    let mut errors = every!(MemoryError {
        Database:
            MemoryError::Database(sqlx::Error::Configuration("secret".into())),
            MemoryError::Database(sqlx::Error::PoolTimedOut),
            MemoryError::Database(sqlx::Error::RowNotFound);
        Timeout: MemoryError::Timeout;
        Contended: MemoryError::Contended;
        PartlyDeleted: MemoryError::PartlyDeleted;
        Invalid: MemoryError::Invalid(InvalidArgument::new("content", Problem::Blank));
        IndexIncomplete: MemoryError::IndexIncomplete;
        Embedding: MemoryError::Embedding(EmbedError::Rejected(403));
        Internal: MemoryError::Internal;
        NotFound: MemoryError::NotFound;
        EmbeddingBudgetExceeded:
            MemoryError::EmbeddingBudgetExceeded { bytes_per_day: 9, retry_after: Some(Duration::from_secs(57)) },
            MemoryError::EmbeddingBudgetExceeded { bytes_per_day: 9, retry_after: None };
    });
    errors.extend(embedding.into_iter().map(MemoryError::from));
    errors
}

fn conversation_errors() -> Vec<ConversationError> {
    every!(ConversationError {
        Disabled: ConversationError::Disabled;
        NotFound: ConversationError::NotFound;
        Store: ConversationError::Store(StoreError::Timeout);
        DeletionIncomplete: ConversationError::DeletionIncomplete(StoreError::DeletionIncomplete);
        Defect: ConversationError::Defect;
    })
}

fn failures() -> Vec<TurnFailure> {
    let kinds = every!(ModelErrorKind {
        Unauthorized: ModelErrorKind::Unauthorized;
        QuotaExhausted: ModelErrorKind::QuotaExhausted;
        RateLimited: ModelErrorKind::RateLimited;
        ModelNotFound: ModelErrorKind::ModelNotFound;
        AddressNotFound: ModelErrorKind::AddressNotFound;
        ContextLength: ModelErrorKind::ContextLength;
        ContentFilter: ModelErrorKind::ContentFilter;
        Rejected: ModelErrorKind::Rejected;
        Unavailable: ModelErrorKind::Unavailable;
        Timeout: ModelErrorKind::Timeout;
        Truncated: ModelErrorKind::Truncated;
        Malformed: ModelErrorKind::Malformed;
        EmptyAnswer: ModelErrorKind::EmptyAnswer;
        OnlyReasoning: ModelErrorKind::OnlyReasoning;
    });
    let mut failures = every!(TurnFailure {
        Model: TurnFailure::Model(ModelError::new(ModelErrorKind::Timeout, ""));
        InvalidToolCall: TurnFailure::InvalidToolCall;
        ToolRoundsExceeded: TurnFailure::ToolRoundsExceeded;
        NotPersisted: TurnFailure::NotPersisted;
        Cancelled: TurnFailure::Cancelled;
        Abandoned: TurnFailure::Abandoned;
        Preempted: TurnFailure::Preempted;
        ShuttingDown: TurnFailure::ShuttingDown;
        DeadlineExceeded: TurnFailure::DeadlineExceeded;
        TokenExpired: TurnFailure::TokenExpired;
        ReplayUnavailable: TurnFailure::ReplayUnavailable;
        ReaderReplaced: TurnFailure::ReaderReplaced;
        Internal: TurnFailure::Internal;
    });
    failures.extend(kinds.into_iter().map(|kind| TurnFailure::Model(ModelError::new(kind, ""))));
    failures
}

fn stages() -> Vec<Stage> {
    every!(Stage {
        Thinking: Stage::Thinking;
        Searching: Stage::Searching;
        Generating: Stage::Generating { recall_failed: false }, Stage::Generating { recall_failed: true };
        ExecutingTools: Stage::ExecutingTools;
    })
}

fn tool_failures() -> Vec<ToolFailure> {
    every!(ToolFailure {
        TimedOut: ToolFailure::TimedOut;
        InvalidArgument: ToolFailure::InvalidArgument;
        Unavailable: ToolFailure::Unavailable;
        Failed: ToolFailure::Failed;
        NotOneSentence: ToolFailure::NotOneSentence;
        Instruction: ToolFailure::Instruction;
        NotStated: ToolFailure::NotStated;
        TooManySaved: ToolFailure::TooManySaved;
        NotShown: ToolFailure::NotShown;
        NeedsApproval: ToolFailure::NeedsApproval;
        NotApproved: ToolFailure::NotApproved;
    })
}

fn address_hints() -> Vec<AddressHint> {
    every!(AddressHint {
        VersionMissing: AddressHint::VersionMissing;
        VersionTwice: AddressHint::VersionTwice;
    })
}

/// The message and the texts in the details.
fn texts_of(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let fields = details.bad_request().into_iter().flat_map(|request| &request.field_violations);
    let quotas = details.quota_failure().into_iter().flat_map(|failure| &failure.violations);
    [status.message().to_owned()]
        .into_iter()
        .chain(fields.map(|violation| violation.description.clone()))
        .chain(quotas.map(|violation| violation.description.clone()))
        .collect()
}

fn texts(language: Language) -> Vec<String> {
    let mut statuses = vec![status::shutting_down(language), status::token_expired(language)];
    statuses.extend(admission_errors().iter().map(|error| status::admission(error, language)));
    statuses.extend(memory_errors().iter().map(|error| error.status(language)));
    statuses.extend(conversation_errors().iter().map(|error| error.status(language)));
    let mut texts: Vec<String> = statuses.iter().flat_map(texts_of).collect();
    texts.extend(failures().iter().map(|failed| failure::error(language, failed).message));
    texts.extend(stages().into_iter().map(|entered| stage(language, entered).to_owned()));
    texts.extend(address_hints().into_iter().map(|hint| address_hint(language, hint).to_owned()));
    let tools = tool_failures().into_iter().map(|failed| tool_failure(language, failed));
    texts.extend(tools.flat_map(|(message, suggestion)| [message.to_owned(), suggestion.to_owned()]));
    texts
}

/// Names and values of the contract, which are the same in every language.
fn identifiers() -> BTreeSet<String> {
    let descriptors = FileDescriptorSet::decode(crate::proto::DESCRIPTOR).unwrap();
    let messages = descriptors.file.into_iter().flat_map(|file| file.message_type);
    let fields = messages.flat_map(|message| message.field).map(|field| field.name().to_owned());
    let metadata = ["user-id", "x-internal-api-key", "authorization"];
    let values = ["false", "user", "assistant", "system", "tool", "/v1", "http", "https", "mailto"];
    let quotas = quotas().into_iter().map(|quota| quota.name().to_owned());
    let literals = metadata.into_iter().chain(values).chain(VARIABLES.iter().copied());
    fields.chain(quotas).chain(literals.map(str::to_owned)).collect()
}

#[test]
fn every_text_is_wholly_in_its_language() {
    let identifiers = identifiers();
    let (english, chinese) = (texts(Language::English), texts(Language::Chinese));
    assert!(english.len() > 80 && english.len() == chinese.len());
    for text in english {
        let is_plain = |c: char| c.is_ascii() || c == '…';
        assert!(!text.is_empty() && text.chars().all(is_plain), "{text}");
    }
    for text in chinese {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '/'));
        let english: Vec<_> = words
            .filter(|word| word.contains(|c: char| c.is_ascii_alphabetic()) && !identifiers.contains(*word))
            .collect();
        assert!(english.is_empty(), "{text} has {english:?}");
        assert!(text.chars().any(crate::language::is_han), "{text}");
    }
}

#[test]
fn message_of_an_invalid_argument_names_its_field_in_every_language() {
    for problem in problems() {
        for language in [Language::English, Language::Chinese] {
            let text = InvalidArgument::new("history[2].role", problem.clone()).describe(language);
            assert!(text.contains("history[2].role"), "{text}");
        }
    }
}

#[test]
fn pushback_beyond_three_seconds_tells_clients_not_to_wait() {
    for (milliseconds, expected) in [(0, "0"), (3_000, "3000"), (3_001, "-1"), (57_249, "-1"), (86_400_000, "-1")] {
        let retry_after = Duration::from_millis(milliseconds);
        let error = AdmissionError::from(exceeded(QuotaKind::RequestsPerMinute, retry_after));
        let status = status::admission(&error, Language::English);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), expected, "{retry_after:?}");
        let told = status.get_error_details().retry_info().unwrap().retry_delay;
        assert_eq!(told, Some(retry_after), "the true delay");
    }
}

//! Texts for users, in each language of the service.

use crate::{
    chat::{Stage, TurnFailure},
    conversation::QuotaKind,
    identity::CredentialError,
    language::Language,
    llm::{AddressHint, ModelErrorKind},
    tools::ToolFailure,
};

pub(super) fn stage(language: Language, stage: Stage) -> &'static str {
    match stage {
        Stage::Thinking => language.pick("Thinking…", "正在思考…"),
        Stage::Searching => language.pick("Searching what I remember…", "正在检索记忆…"),
        Stage::Generating { recall_failed: false } => language.pick("Writing the answer…", "正在生成回答…"),
        Stage::Generating { recall_failed: true } => {
            language.pick("Memory is unreachable; answering without it…", "暂时无法检索记忆，直接回答…")
        }
        Stage::ExecutingTools => language.pick("Using tools…", "正在使用工具…"),
    }
}

pub(super) fn waiting_for_process(language: Language) -> &'static str {
    language.pick("Waiting for the server that writes the answer…", "正在等待生成回答的服务器…")
}

pub(super) fn failure(language: Language, failure: &TurnFailure) -> &'static str {
    match failure {
        TurnFailure::Model(error) => model_failure(language, error.kind),
        TurnFailure::ShuttingDown => {
            language.pick("The server is restarting. Please try again in a moment.", "服务正在重启，请稍后重试。")
        }
        TurnFailure::DeadlineExceeded => language.pick(
            "The answer took longer than the time limit of this call. Please try again.",
            "回答超出了本次调用的时间限制，请重试。",
        ),
        TurnFailure::InvalidToolCall => language.pick(
            "The model asked for a tool in a way that does not work. Please try again.",
            "模型调用工具的方式有误，请重试。",
        ),
        TurnFailure::ToolRoundsExceeded => language.pick(
            "The model used tools again and again without coming to an answer. Please ask in another way.",
            "模型反复调用工具而没有给出回答，请换一种问法。",
        ),
        TurnFailure::NotPersisted => language.pick(
            "The conversation cannot be read or saved right now. Please try again in a moment.",
            "暂时无法读取或保存对话，请稍后重试。",
        ),
        TurnFailure::Cancelled => language.pick("The answer was stopped.", "回答已停止。"),
        TurnFailure::Abandoned => language.pick(
            "The connection was lost for too long, so the answer was stopped. Please ask again.",
            "连接中断过久，回答已放弃，请重新提问。",
        ),
        TurnFailure::Preempted => language.pick(
            "A newer message of the conversation took its place, so the answer was stopped.",
            "该对话有了更新的消息，这个回答已停止。",
        ),
        TurnFailure::TokenExpired => {
            language.pick("Your sign-in has expired. Please sign in again.", "登录已过期，请重新登录。")
        }
        TurnFailure::ReplayUnavailable => language.pick(
            "The answer cannot be read right now. Please try again in a moment.",
            "暂时无法读取回答，请稍后重试。",
        ),
        TurnFailure::ReaderReplaced => language.pick(
            "This answer was opened again elsewhere, so it stops here.",
            "这个回答已在别处重新打开，此处不再更新。",
        ),
        TurnFailure::Internal => language.pick("Something went wrong on our side.", "服务内部出错了。"),
    }
}

/// Names the limit as the configuration does, and what it allows.
pub(super) fn limit_exceeded(language: Language, quota: QuotaKind, limit: u64) -> String {
    let (en, zh) = match quota {
        QuotaKind::RequestsPerMinute => {
            ("too many requests in this minute; wait a moment: at most", "本分钟内请求过多，请稍候：上限为每分钟")
        }
        QuotaKind::ConcurrentStreams => (
            "too many answers at the same time; wait until one has ended: at most",
            "同时进行的回答过多，请等待其中一个结束：上限为",
        ),
        QuotaKind::TokensPerDay => (
            "today's token quota is used up; it resets at midnight UTC: at most",
            "今日的用量额度已用完，将于世界标准时间零点（北京时间 8 点）恢复：上限为每日",
        ),
        QuotaKind::CallsPerMinute => {
            ("too many calls in a minute; wait a moment: at most", "一分钟内的调用过多，请稍候：上限为每分钟")
        }
        QuotaKind::ConcurrentCalls => (
            "too many calls wait for others of this user; send fewer at the same time: at most",
            "该用户排队等待的调用过多，请减少同时发送的调用：同时处理的上限为",
        ),
        QuotaKind::ExportsPerMinute => {
            ("too many exports in a minute; wait a moment: at most", "一分钟内的导出过多，请稍候：上限为每分钟")
        }
        QuotaKind::ConcurrentExports => (
            "too many exports at the same time; read or cancel one first: at most",
            "同时进行的导出过多，请先读完或取消其中一个：上限为",
        ),
        QuotaKind::EmbeddedBytesPerDay => (
            "the text to embed exceeds what is left of today's budget; send less, or wait until tomorrow (UTC): at most",
            "待向量化的文本超出今日的剩余额度，请减少文本，或等到世界标准时间次日：上限为每日字节数",
        ),
    };
    let name = quota.name();
    language.pick(format!("{en} {limit} ({name})"), format!("{zh} {limit}（{name}）"))
}

/// For a request that exceeds a limit alone, so that it never succeeds.
pub(super) fn request_above_limit(language: Language, quota: QuotaKind, limit: u64) -> String {
    let name = quota.name();
    language.pick(
        format!("this request alone exceeds the limit, so waiting does not help; divide it: at most {limit} ({name})"),
        format!("单个请求已超出上限，等待无济于事，请拆分后再发：上限为 {limit}（{name}）"),
    )
}

pub(super) fn session_busy(language: Language) -> &'static str {
    language.pick(
        "the conversation is answering another request; wait until it has ended, or stop it",
        "该对话正在回答另一个请求，请等待它结束，或先停止它",
    )
}

pub(super) fn too_many_readers(language: Language) -> &'static str {
    language.pick(
        "too many streams are open; close some, or read them to their ends",
        "打开的流过多，请关闭一些，或把它们读完",
    )
}

pub(super) fn overloaded(language: Language) -> &'static str {
    language.pick("the service is busy right now; try again in a moment", "服务繁忙，请稍后重试")
}

pub(super) fn store_unavailable(language: Language) -> &'static str {
    language.pick("the conversation cannot be reached right now; try again", "暂时无法访问对话，请稍后重试")
}

pub(super) fn deletion_incomplete(language: Language) -> &'static str {
    language.pick(
        "not all of the conversations were deleted; call again to delete the others",
        "部分对话尚未删除，请再次调用以删除其余对话",
    )
}

pub(super) fn permission_denied(language: Language) -> &'static str {
    language.pick("user_id must be the subject of the token, or empty", "user_id 必须是令牌所属的用户，或者留空")
}

pub(super) fn credential_error(language: Language, error: CredentialError) -> &'static str {
    match error {
        CredentialError::Missing => language
            .pick("the call needs a bearer token in its authorization", "调用缺少令牌，请放在元数据 authorization 中"),
        CredentialError::Expired => language.pick("the token has expired; sign in again", "令牌已过期，请重新登录"),
        CredentialError::Invalid => language.pick("the token is not valid", "令牌无效"),
        CredentialError::WrongInternalKey => language.pick("x-internal-api-key is wrong", "x-internal-api-key 不正确"),
        CredentialError::KeysUnavailable => {
            language.pick("tokens cannot be checked right now; try again", "暂时无法校验令牌，请稍后重试")
        }
    }
}

pub(super) fn shutting_down(language: Language) -> &'static str {
    language.pick("the server is shutting down; try again", "服务正在关闭，请重试")
}

pub(super) fn memory_not_found(language: Language) -> &'static str {
    language.pick("id names no memory of this user", "该用户没有 id 所指的记忆")
}

pub(super) fn memory_not_configured(language: Language) -> &'static str {
    language.pick(
        "this service has no memory; its operator can set DATABASE_URL",
        "该服务没有记忆库，管理员可以设置 DATABASE_URL",
    )
}

pub(super) fn memory_unavailable(language: Language) -> &'static str {
    language.pick("the memory cannot be reached right now; try again", "暂时无法访问记忆，请稍后重试")
}

pub(super) fn memory_contended(language: Language) -> &'static str {
    language.pick(
        "other writes to the memory are in progress, and nothing was changed; try again in a moment",
        "记忆库正在处理其他写入，本次未作任何更改，请稍后重试",
    )
}

pub(super) fn memories_partly_deleted(language: Language) -> &'static str {
    language.pick(
        "other writes to the memory are in progress, and not all of the memories were deleted; call again to delete the others",
        "记忆库正在处理其他写入，部分记忆尚未删除，请再次调用以删除其余记忆",
    )
}

pub(super) fn embedding_key_refused(language: Language) -> &'static str {
    language.pick(
        "the embedding provider refused the service's key; its operator should check EMBEDDING_API_KEY",
        "向量模型服务商拒绝了密钥，请管理员检查 EMBEDDING_API_KEY",
    )
}

pub(super) fn memory_failed(language: Language) -> &'static str {
    language.pick("the memory failed", "记忆服务出错")
}

pub(super) fn conversations_disabled(language: Language) -> &'static str {
    language.pick(
        "this service stores no conversations; its operator can set CONVERSATIONS",
        "该服务不保存对话，管理员可以设置 CONVERSATIONS",
    )
}

pub(super) fn session_not_found(language: Language) -> &'static str {
    language.pick("session_id names no conversation of this user", "该用户没有 session_id 所指的对话")
}

pub(super) fn conversations_failed(language: Language) -> &'static str {
    language.pick("the conversations failed", "对话服务出错")
}

/// The failure, and a suggestion.
pub(super) fn tool_failure(language: Language, failure: ToolFailure) -> (&'static str, &'static str) {
    match failure {
        ToolFailure::TimedOut => {
            language.pick(("the memory took too long", "try again later"), ("检索记忆超时", "请稍后重试"))
        }
        ToolFailure::InvalidArgument => language.pick(
            ("an argument is blank or holds a NUL", "give text that is not blank"),
            ("参数为空白或含有空字符", "请提供非空白的文本"),
        ),
        ToolFailure::Unavailable => language
            .pick(("the memory cannot be reached right now", "try again later"), ("暂时无法访问记忆", "请稍后重试")),
        ToolFailure::NotOneSentence => language.pick(
            ("the fact is longer than one line", "save it in short"),
            ("内容不是一行以内的一句话", "请缩短后再保存"),
        ),
        ToolFailure::Instruction => language.pick(
            ("an instruction is not saved as a fact", "state a fact about yourself"),
            ("指令不会保存为事实", "请陈述关于自己的事实"),
        ),
        ToolFailure::NotStated => language.pick(
            ("you did not say this in the conversation", "say it yourself, or add it in the memory panel"),
            ("你在对话中没有说过这句话", "请亲自说出来，或在记忆面板中添加"),
        ),
        ToolFailure::TooManySaved => language.pick(
            ("too many facts were saved in this turn", "ask again for the rest"),
            ("这一轮保存的事实过多", "其余的请再次提出"),
        ),
        ToolFailure::NotShown => language.pick(
            ("a memory to forget was not shown in the conversation", "ask to search for it first"),
            ("要忘记的记忆没有在对话中出现过", "请先要求检索"),
        ),
        ToolFailure::NeedsApproval => language.pick(
            ("forgetting so many memories needs your approval", "delete them in the memory panel"),
            ("忘记这么多记忆需要你同意", "请在记忆面板中删除"),
        ),
        ToolFailure::NotApproved => {
            language.pick(("forgetting was not approved", "the memories are kept"), ("未同意忘记", "记忆已保留"))
        }
        ToolFailure::Failed => {
            language.pick(("the memory failed", "go on without it"), ("记忆服务出错", "请不使用记忆继续"))
        }
    }
}

pub(super) fn address_hint(language: Language, hint: AddressHint) -> &'static str {
    match hint {
        AddressHint::VersionMissing => language.pick("the address has no /v1 at its end", "地址末尾缺少 /v1"),
        AddressHint::VersionTwice => language.pick("the address has /v1 twice", "地址中有两个 /v1"),
    }
}

fn model_failure(language: Language, kind: ModelErrorKind) -> &'static str {
    match kind {
        ModelErrorKind::Unauthorized => language.pick(
            "The model provider refused the service's key. The operator of the service should check LLM_API_KEY.",
            "模型服务商拒绝了密钥，请管理员检查 LLM_API_KEY。",
        ),
        ModelErrorKind::QuotaExhausted => language.pick(
            "The service's account at the model provider is used up. The operator of the service should top it up.",
            "模型服务商账户的余额或额度已用完，请管理员充值。",
        ),
        ModelErrorKind::RateLimited => language.pick(
            "The model is asked too often right now. Please try again in a moment.",
            "当前请求过多，请稍后重试。",
        ),
        ModelErrorKind::ModelNotFound => language.pick(
            "The model provider does not know this model. The operator of the service should check the model's name.",
            "模型服务商没有这个模型，请管理员检查模型名称。",
        ),
        ModelErrorKind::AddressNotFound => language.pick(
            "There is no model API at the configured address. The operator of the service should check LLM_API_BASE_URL: it usually ends with one /v1.",
            "配置的地址上没有模型接口，请管理员检查 LLM_API_BASE_URL（通常以一个 /v1 结尾）。",
        ),
        ModelErrorKind::ContextLength => language.pick(
            "The conversation is too long for the model. Please start a new one or shorten your message.",
            "对话超出了模型的长度限制，请新建对话或缩短消息。",
        ),
        ModelErrorKind::ContentFilter => language
            .pick("The model provider's content filter refused this message.", "该消息被模型服务商的内容审核拒绝。"),
        ModelErrorKind::Rejected => language.pick("The model provider refused the request.", "模型服务商拒绝了该请求。"),
        ModelErrorKind::Unavailable => language.pick(
            "The model provider cannot be reached right now. Please try again in a moment.",
            "模型服务商暂时不可用，请稍后重试。",
        ),
        ModelErrorKind::Timeout => {
            language.pick("The model took too long to answer. Please try again.", "模型响应超时，请重试。")
        }
        ModelErrorKind::Truncated => language.pick(
            "The connection to the model broke off in the middle of the answer. Please try again.",
            "与模型服务商的连接中断，回答不完整，请重试。",
        ),
        ModelErrorKind::Malformed => language.pick(
            "The model provider sent something unreadable. Please try again.",
            "模型服务商返回了无法识别的数据，请重试。",
        ),
        ModelErrorKind::EmptyAnswer => {
            language.pick("The model gave an empty answer. Please try again.", "模型返回了空回答，请重试。")
        }
        ModelErrorKind::OnlyReasoning => language.pick(
            "The model thought about it but gave no answer. Please try again.",
            "模型只进行了思考而没有给出回答，请重试。",
        ),
    }
}

#[cfg(test)]
#[path = "wording_tests.rs"]
mod tests;

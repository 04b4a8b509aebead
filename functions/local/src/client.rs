//! The commands that call a running server: chat, remember and recall.

use std::{
    error::Error,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use agent_service::{
    language::Language,
    proto::agent_v1::{
        self as pb, agent_service_client::AgentServiceClient, chat_response::Content,
        memory_service_client::MemoryServiceClient,
    },
};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tonic::{Request, metadata::MetadataValue};

use crate::{
    CommandResult,
    connection::{AuthenticatedChannel, connect, describe_status},
    options::{ChatArguments, RecallArguments, RememberArguments},
    retry::while_limited,
};

/// Messages that a request carries; the server accepts 200.
const MAX_HISTORY: usize = 100;

pub async fn chat(arguments: ChatArguments) -> CommandResult {
    let channel = connect(&arguments.connection).await?;
    let mut session = Session {
        client: AgentServiceClient::new(channel),
        session_id: arguments.session.clone().unwrap_or_default(),
        history: Vec::new(),
        arguments,
    };
    if let Some(message) = session.arguments.message.take() {
        return Ok(if session.ask(message).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    session.run_interactively().await?;
    Ok(ExitCode::SUCCESS)
}

struct Session {
    client: AgentServiceClient<AuthenticatedChannel>,
    session_id: String,
    history: Vec<pb::ChatMessage>,
    arguments: ChatArguments,
}

impl Session {
    async fn run_interactively(&mut self) -> Result<(), Box<dyn Error>> {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        eprintln!("Interactive session; press Ctrl-D to leave.");
        loop {
            eprint!("{}", dim("you> "));
            let Some(line) = lines.next_line().await? else { break };
            if !line.trim().is_empty() {
                // A rejected question or a restart of the server does not end the session.
                if let Err(error) = Box::pin(self.ask(line)).await {
                    eprintln!("error: {error}");
                }
            }
        }
        Ok(())
    }

    /// Returns whether the answer was complete.
    async fn ask(&mut self, message: String) -> Result<bool, Box<dyn Error>> {
        let language = self
            .arguments
            .language
            .clone()
            .unwrap_or_else(|| Language::detect(&message).pick("en", "zh-CN").to_owned());
        let request = pb::ChatRequest {
            user_id: self.arguments.connection.user.clone(),
            session_id: self.session_id.clone(),
            input: Some(pb::chat_request::Input::Message(message.clone())),
            user_profile: Some(pb::UserProfile {
                language,
                timezone: self.arguments.timezone.clone(),
                ..Default::default()
            }),
            history: self.history.clone(),
            config: self.arguments.model.clone().map(|model| pb::ChatConfig { model, ..Default::default() }),
            ..Default::default()
        };
        let mut request = Request::new(request);
        if self.arguments.no_memory {
            request.metadata_mut().insert("x-recall", MetadataValue::from_static("off"));
        }
        let mut frames = self.client.stream_chat(request).await.map_err(describe_status)?.into_inner();
        let mut is_complete = false;
        while let Some(frame) = frames.message().await.map_err(describe_status)? {
            self.session_id.clone_from(&frame.session_id);
            if let Some(Content::FullText(text)) = &frame.content {
                is_complete = true;
                self.append_turn(&message, text);
            }
            print_frame(frame)?;
        }
        Ok(is_complete)
    }

    fn append_turn(&mut self, question: &str, answer: &str) {
        let message = |role: &str, content: &str| pb::ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            ..Default::default()
        };
        self.history.extend([message("user", question), message("assistant", answer)]);
        let surplus = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..surplus);
    }
}

fn print_frame(frame: pb::ChatResponse) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let metadata = frame.metadata;
    match frame.content {
        Some(Content::Delta(delta)) => {
            write!(out, "{}", printable(&delta))?;
            out.flush()?;
        }
        Some(Content::StatusUpdate(status)) => eprintln!("{}", dim(&format!("[{}]", status.details))),
        Some(Content::Citations(block)) => {
            for (index, citation) in block.citations.iter().enumerate() {
                let line = format!("[{}] {:.2}  {}", index + 1, citation.score, one_line(&citation.content, 100));
                eprintln!("{}", dim(&line));
            }
        }
        Some(Content::Usage(usage)) => {
            let estimated = metadata.get("usage_source").is_some_and(|source| source == "estimated");
            let prefix = if estimated { "about " } else { "" };
            writeln!(out)?;
            eprintln!("{}", dim(&format!("[{prefix}{} + {} tokens]", usage.prompt_tokens, usage.completion_tokens)));
        }
        Some(Content::Error(error)) => {
            writeln!(out)?;
            let hint = if error.retryable { " (a retry may help)" } else { "" };
            eprintln!("error: {}{hint} [{}]", printable(&error.message), printable(&error.code));
        }
        Some(Content::ToolCall(call)) if metadata.get("needs_approval").is_some_and(|value| value == "true") => {
            let memories = metadata.get("approval_details").map_or("", String::as_str);
            eprintln!("{}", dim(&format!("[{} needs your approval, which the page can give: {memories}]", call.name)));
        }
        Some(Content::ToolCall(call)) => {
            eprintln!(
                "{}",
                dim(&format!(
                    "[calls the tool {} {}; only a client that runs tools can continue]",
                    call.name, call.arguments
                ))
            );
        }
        Some(Content::ToolResult(result)) => {
            let outcome = if result.success { "done" } else { &result.error_message };
            eprintln!("{}", dim(&format!("[{}: {outcome}]", result.tool_name)));
        }
        Some(Content::FullText(_)) | None => {}
    }
    Ok(())
}

pub async fn remember(arguments: RememberArguments) -> CommandResult {
    let client = MemoryServiceClient::new(connect(&arguments.connection).await?);
    let memory = pb::MemoryInput { content: arguments.text, tags: arguments.tags, ..Default::default() };
    let request = pb::AddMemoriesRequest { user_id: arguments.connection.user, memories: vec![memory] };
    let add = async || client.clone().add_memories(request.clone()).await;
    let added = while_limited(|line| eprintln!("{line}"), add).await.map_err(describe_status)?.into_inner();
    writeln!(std::io::stdout(), "Remembered as {}", added.ids.join(", "))?;
    Ok(ExitCode::SUCCESS)
}

pub async fn recall(arguments: RecallArguments) -> CommandResult {
    let client = AgentServiceClient::new(connect(&arguments.connection).await?);
    let request = pb::MemoryQuery {
        user_id: arguments.connection.user,
        query_text: arguments.query,
        limit: arguments.limit,
        min_score: arguments.min_score,
        ..Default::default()
    };
    let retrieve = async || client.clone().retrieve_memory(request.clone()).await;
    let found = while_limited(|line| eprintln!("{line}"), retrieve).await.map_err(describe_status)?.into_inner();
    let mut out = std::io::stdout().lock();
    if found.items.is_empty() {
        writeln!(out, "No memories found.")?;
    }
    for item in &found.items {
        writeln!(out, "{:.3}  {}  {}", item.score, printable(&one_line(&item.content, 160)), dim(&item.id))?;
    }
    let shown = i32::try_from(found.items.len()).unwrap_or(i32::MAX);
    if found.total_found > shown {
        writeln!(out, "… and {} more", found.total_found - shown)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn one_line(text: &str, max_chars: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= max_chars { line } else { line.chars().take(max_chars).chain(['…']).collect() }
}

/// Without control characters: what a model or an imported text says may not drive the terminal, for example its clipboard.
fn printable(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn dim(text: &str) -> String {
    let text = printable(text);
    if std::io::stderr().is_terminal() { format!("\x1b[2m{text}\x1b[0m") } else { text }
}

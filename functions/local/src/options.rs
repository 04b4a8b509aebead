//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Streaming chat with long-term memory, as one local server.
///
/// Without a command it runs the server. All settings are environment variables, or lines of a file `.env`;
/// docs/reference/configuration.md lists them. Without any setting it answers with canned texts (demo mode) and runs its own
/// Postgres.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  agent-local                                  run the server on 127.0.0.1:50051
  agent-local chat \"帮我制定高数复习计划\"        ask it something, in a second terminal
  agent-local remember \"I mix up eigenvalues and eigenvectors\"
  agent-local recall \"how do eigenvalues differ from eigenvectors?\"
  agent-local import notes/ book.md chat.jsonl  fill its memory from files";

/// Where a server listens that was not told otherwise.
pub const DEFAULT_ADDR: &str = "http://127.0.0.1:50051";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server (what happens without a command)
    Serve,
    /// Bring the tables of DATABASE_ADMIN_URL, or else DATABASE_URL, up to date
    Migrate,
    /// Give every memory a vector of the configured embedding model, while a server goes on
    Reembed(ReembedArguments),
    /// Chat with a running server; without a message, an interactive session
    Chat(ChatArguments),
    /// Store a memory in a running server
    Remember(RememberArguments),
    /// Search the memory of a running server
    Recall(RecallArguments),
    /// Import files and folders into the memory of a running server
    ///
    /// Markdown and plain text (.md, .markdown, .txt) become documents. A document is known by its path from the last name
    /// of PATH on, and importing it again replaces it. Each line of a .jsonl file becomes a memory: an object with `content`
    /// and, if you like, `id`, `source_type`, `tags`, `created_at` (RFC 3339), `metadata` (strings) and `supersedes`. What
    /// can not be imported is skipped and listed at the end.
    ///
    /// After an interruption the same command goes on where it stopped.
    Import(ImportArguments),
}

#[derive(Debug, Args)]
pub struct ReembedArguments {
    /// Forget the vectors of all other models afterwards
    #[arg(long)]
    pub prune: bool,
}

/// Which server, and on whose behalf.
#[derive(Debug, Args)]
pub struct Connection {
    /// Address of the server
    #[arg(long, default_value = DEFAULT_ADDR, value_name = "URL")]
    pub addr: String,
    /// PEM file with the certificate authority of a server with TLS
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Whose memory and chats
    #[arg(long, default_value = "me", value_name = "ID")]
    pub user: String,
    /// Bearer token, where the server wants one
    #[arg(long, env = "AGENT_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
}

#[derive(Debug, Args)]
pub struct ChatArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// What to ask; without it, an interactive session that ends with Ctrl-D
    #[arg(value_name = "MESSAGE")]
    pub message: Option<String>,
    /// Id of the conversation; without it, a new one
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Language of statuses and errors, as a BCP 47 tag; without it, that of the message
    #[arg(long, value_name = "TAG")]
    pub language: Option<String>,
    /// IANA time zone for the model's sense of time
    #[arg(long, value_name = "ZONE", default_value = "")]
    pub timezone: String,
    /// Model instead of the configured one
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Answer without the memory
    #[arg(long)]
    pub no_memory: bool,
}

#[derive(Debug, Args)]
pub struct RememberArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// What to remember
    #[arg(value_name = "TEXT")]
    pub text: String,
    /// Label to filter by later; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RecallArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// What to look for
    #[arg(value_name = "QUERY")]
    pub query: String,
    /// Most memories to show, 1 to 100
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100))]
    pub limit: i32,
    /// Least score, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SCORE")]
    pub min_score: f32,
}

#[derive(Debug, Args)]
pub struct ImportArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// Files, and folders with everything below them but hidden files
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Label of everything that is imported; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Import files again that were imported before and have not changed
    #[arg(long)]
    pub again: bool,
}

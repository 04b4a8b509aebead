#[cfg(feature = "dynamodb")]
use crate::conversation::dynamodb::DynamoSetupError;
#[cfg(feature = "local-embeddings")]
use crate::embedding::LocalModelError;
use crate::{
    llm::{DemoResponsesError, PricesError},
    tools::ToolsFileError,
};

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    DemoResponses(#[from] DemoResponsesError),
    #[error(transparent)]
    Prices(#[from] PricesError),
    #[error(transparent)]
    Tools(#[from] ToolsFileError),
    #[cfg(feature = "local-embeddings")]
    #[error("EMBEDDING_MODEL_DIR cannot be used: {0}")]
    LocalModel(#[from] LocalModelError),
    #[cfg(not(feature = "local-embeddings"))]
    #[error("this build has no local embedder: set EMBEDDING_PROVIDER to openai or hashed")]
    LocalModelUnsupported,
    #[cfg(feature = "dynamodb")]
    #[error(transparent)]
    Dynamo(#[from] DynamoSetupError),
    #[cfg(not(feature = "dynamodb"))]
    #[error("this build has no DynamoDB store: set CONVERSATIONS to postgres or off")]
    DynamoUnsupported,
    #[error("failed to build the HTTP client: {0}")]
    HttpClient(#[from] reqwest::Error),
    #[error("a prompt template is malformed: {0}")]
    Prompt(#[from] minijinja::Error),
}

impl SetupError {
    /// Whether the user can fix it by changing the configuration or a file that it names.
    #[must_use]
    pub fn is_configuration_error(&self) -> bool {
        !matches!(self, Self::HttpClient(_) | Self::Prompt(_))
    }
}

//! What only DynamoDB can show.

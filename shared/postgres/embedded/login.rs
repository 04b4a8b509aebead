/// The cluster's superuser. It has no password: the permissions of the socket directory protect it.
pub const USER: &str = "postgres";

/// Part of the socket's file name. Set it when connecting, or `PGPORT` in the environment changes it.
pub const PORT: u16 = 5432;

//! TLS: which cryptography it uses.

/// Decides which cryptography TLS uses in this process, before any connection with it: the libraries below bring two,
/// and choose neither.
pub(crate) fn choose_cryptography() {
    // A program that uses this crate may have decided.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

//! The control plane: storage, API, certificate authority and published maps.

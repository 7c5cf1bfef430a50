//! What a name means to one asker: decided by the organisation of its source address.

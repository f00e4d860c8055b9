"""The one inference path: chat, evaluation, rollouts and servers; token ids in, token ids out."""

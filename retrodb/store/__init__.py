"""Where bytes are kept and how a new version becomes visible: storage, publish, commit, verification, collection."""

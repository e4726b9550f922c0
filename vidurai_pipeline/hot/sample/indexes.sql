-- Made after the rows: sorting once costs less than keeping five trees in order.
CREATE INDEX idx_memories_project ON memories(project_id); CREATE INDEX idx_memories_salience ON memories(salience);
CREATE INDEX idx_memories_created ON memories(created_at DESC); CREATE INDEX idx_memories_file ON memories(file_path);
CREATE INDEX idx_memories_pinned ON memories(pinned) WHERE pinned = 1;
CREATE INDEX idx_active_state_project ON active_state(project_id);
CREATE INDEX idx_active_state_errors ON active_state(has_errors) WHERE has_errors = TRUE;
CREATE INDEX idx_audience_gists_memory ON audience_gists(memory_id);
CREATE INDEX idx_audience_gists_audience ON audience_gists(audience);

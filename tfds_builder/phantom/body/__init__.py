"""The patient: skeleton, organs and outline, before any disease."""

"""stages/merge"""

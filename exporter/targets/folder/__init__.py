"""targets/folder"""
